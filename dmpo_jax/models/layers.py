"""The layers that hold parameters. A module is built without numbers: shapes and dtypes only."""

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import fsdp, kernels


def parameter(*shape: int) -> nnx.Param:
  """A float32 parameter that has a shape and no value yet; `whole` is the shape."""
  return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), whole=shape)


def weight(
  param: nnx.Param, dtype: jax.typing.DTypeLike | None = None, factor: float = 1.0
) -> jax.Array:
  """A parameter as a layer computes with it, in a dtype or its own; see `placement.weight`."""
  value = param[...]
  return fsdp.weight(value, dtype or value.dtype, param.whole, factor)


class Linear(nnx.Module):
  """y = factor (x kernel + bias), computed in the dtype of x: `[..., I]` to `[..., O]`.

  The factor is taken to the parameters, where it costs no pass over y.
  """

  def __init__(self, inputs: int, outputs: int, bias: bool = True):
    self.kernel = parameter(inputs, outputs)
    self.bias = parameter(outputs) if bias else None

  def __call__(self, x: jax.Array, factor: float = 1.0) -> jax.Array:
    bias = None if self.bias is None else weight(self.bias, x.dtype, factor)
    return kernels.dense(x, weight(self.kernel, x.dtype, factor), bias)


class Conv(nnx.Module):
  """`kernels.convolution` with its padding: `[B, H, W, I]` to `[B, H/stride, W/stride, O]`."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
  ):
    self.kernel = parameter(size, size, inputs, outputs)
    self.bias = parameter(outputs)
    self.stride = stride
    self.padding = padding

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, bias = (weight(p, x.dtype) for p in (self.kernel, self.bias))
    return kernels.convolution(x, kernel, bias, self.stride, self.padding)


class GroupNorm(nnx.Module):
  """Group normalisation over space and the channels of a group: `[B, ..., C]`."""

  def __init__(self, channels: int, groups: int, eps: float):
    self.scale = parameter(channels)
    self.bias = parameter(channels)
    self.groups = groups
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    scale, bias = (weight(p) for p in (self.scale, self.bias))
    return kernels.group_norm(x, scale, bias, self.groups, self.eps)


class LayerNorm(nnx.Module):
  """Normalisation over the last axis: `[..., C]`."""

  def __init__(self, channels: int, eps: float = 1e-5):
    self.scale = parameter(channels)
    self.bias = parameter(channels)
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    scale, bias = (weight(p) for p in (self.scale, self.bias))
    return kernels.layer_norm(x, scale, bias, self.eps)


class Embedding(nnx.Module):
  """A table of vectors: integers `[...]` to `[..., C]`."""

  def __init__(self, entries: int, channels: int):
    self.embedding = parameter(entries, channels)

  def table(self) -> jax.Array:
    """All vectors, `[entries, C]`."""
    return weight(self.embedding)

  def __call__(self, indices: jax.Array) -> jax.Array:
    return jnp.take(self.table(), indices, axis=0)


class Empty(nnx.Module):
  """Holds the place of a layer without parameters (dropout) in a numbered list."""
