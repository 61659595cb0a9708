"""Torch networks at tiny size, and their weights in this project's layout."""

import numpy as np
import torch

from dmpo_jax import interop


def to_params(module, shapes):
  """The weights of a torch module as a parameter tree of these shapes."""
  state = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
  return interop.from_torch_state(state, shapes)


def randomise(module, seed=0):
  """Draws every parameter anew, so that no bias is zero and no scale one."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in module.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim == 1:
        parameter.add_(0.1 * noise)
      else:
        parameter.copy_(noise * parameter[0].numel() ** -0.5)
  return module.eval()


def nchw(x):
  """A numpy NHWC array as a torch NCHW tensor."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x):
  """A torch NCHW tensor as a numpy NHWC array."""
  return np.moveaxis(x.detach().numpy(), 1, -1)


def relative(found, wanted):
  """The largest deviation, relative to the largest magnitude wanted."""
  found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
  return np.abs(found - wanted).max() / np.abs(wanted).max()
