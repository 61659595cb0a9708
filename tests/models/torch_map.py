"""Torch networks at tiny size, their weights in this project's layout, and comparisons."""

import jax
import numpy as np
import torch

from dmpo_jax import interop
from dmpo_jax.models import trees


def to_params(module, shapes):
  """The weights of a torch module as a parameter tree of these shapes."""
  state = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
  return interop.from_torch_state(state, shapes)


def to_gradients(module, shapes):
  """The gradients of a torch module after a backward pass, as a parameter tree of these shapes."""
  state = {
    name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
    for name, p in module.named_parameters()
  }
  return interop.from_torch_state(state, shapes)


def torch_shapes(module):
  """The shape of each weight of a torch module, in the layout of this project."""
  shapes = {}
  for name, tensor in module.state_dict().items():
    shape = tuple(tensor.shape)
    matrix = len(shape) > 1 and not name.endswith("embedding.weight")
    shapes[name] = (*shape[2:], shape[1], shape[0]) if matrix else shape
  return shapes


def our_shapes(tree):
  """The shape of each leaf of a parameter tree under its torch name."""
  shapes = {}
  for path, leaf in trees.flatten(tree).items():
    stem, _, kind = path.rpartition(".")
    shapes[f"{stem}.{'bias' if kind == 'bias' else 'weight'}"] = leaf.shape
  return shapes


def randomise(module, seed=0):
  """The module with random parameters, so that no bias is zero and no scale one."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim < 2:
        parameter.copy_(0.1 * noise + (not name.endswith("bias")))
      else:
        parameter.copy_(noise * parameter[0].numel() ** -0.5)
  return module.eval()


def nchw(x):
  """A numpy NHWC array as a torch NCHW tensor."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x):
  """A torch NCHW tensor as a numpy NHWC array."""
  return np.moveaxis(x.detach().float().numpy(), 1, -1)


def jit(function):
  """jax.jit without XLA's costly passes: here compiling takes most of the time."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def relative(actual, expected):
  """The largest deviation, relative to the largest expected magnitude."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  return np.abs(actual - expected).max() / np.abs(expected).max()


def worst(actual, expected):
  """The name and the relative deviation of the worst leaf of a tree of gradients.

  A few gradients (of the biases of keys, of biases before a norm) are zero up to rounding. Their
  deviation is relative to 3e-4 of the largest gradient.
  """
  actual, expected = trees.flatten(actual), trees.flatten(expected)
  assert actual.keys() == expected.keys()
  floor = 3e-4 * max(np.abs(g).max() for g in expected.values())
  off = {n: np.abs(actual[n] - g).max() / max(np.abs(g).max(), floor) for n, g in expected.items()}
  name = max(off, key=off.get)
  return name, off[name]
