"""Torch networks at tiny size, and their weights in this project's layout."""

import numpy as np
import torch

from dmpo_jax.models import trees


def to_params(module, shapes):
  """The weights of a torch module as a parameter tree of these shapes.

  Names agree but for the leaf; a convolution's axes move from OIHW to HWIO, a linear map is
  transposed, and tables stay.
  """
  state = {k: v.detach().numpy() for k, v in module.state_dict().items()}
  flat = {}
  for name in trees.flatten(shapes):
    stem, _, leaf = name.rpartition(".")
    array = state.pop(f"{stem}.{'bias' if leaf == 'bias' else 'weight'}")
    if leaf == "kernel":
      array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    flat[name] = np.ascontiguousarray(array)
  assert not state, f"left over: {sorted(state)}"
  return trees.unflatten(flat)


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
