"""Layers with parameters. A module is built with shapes and dtypes instead of arrays."""

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import fsdp, kernels
from dmpo_jax.models.compute import Compute


def parameter(*shape: int) -> nnx.Param:
  """A float32 parameter with a shape and no array yet; `full_shape` is the shape."""
  return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), full_shape=shape)


def weight(
  param: nnx.Param,
  compute: Compute,
  dtype: jax.typing.DTypeLike | None = None,
  scale: float = 1.0,
) -> jax.Array:
  """The full parameter times scale, in dtype or in its own; see `fsdp.weight`."""
  value = param[...]
  return fsdp.weight(value, dtype or value.dtype, param.full_shape, compute.placement, scale)


class Linear(nnx.Module):
  """y = scale (x kernel + bias), computed in the dtype of x: `[..., I]` to `[..., O]`.

  The scale multiplies the parameters, where it costs no pass over y.
  """

  def __init__(self, inputs: int, outputs: int, bias: bool = True, *, compute: Compute):
    self.compute = compute
    self.kernel = parameter(inputs, outputs)
    self.bias = parameter(outputs) if bias else None

  def __call__(self, x: jax.Array, scale: float = 1.0) -> jax.Array:
    bias = None if self.bias is None else weight(self.bias, self.compute, x.dtype, scale)
    kernel = weight(self.kernel, self.compute, x.dtype, scale)
    return kernels.linear(x, kernel, bias, compute=self.compute)


class Conv(nnx.Module):
  """`kernels.convolution` with parameters: `[B, H, W, I]` to `[B, H/stride, W/stride, O]`."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    *,
    compute: Compute,
  ):
    self.compute = compute
    self.kernel = parameter(size, size, inputs, outputs)
    self.bias = parameter(outputs)
    self.stride = stride
    self.padding = padding

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, bias = (weight(p, self.compute, x.dtype) for p in (self.kernel, self.bias))
    return kernels.convolution(x, kernel, bias, self.stride, self.padding, compute=self.compute)


class GroupNorm(nnx.Module):
  """Group normalisation over space and the channels of a group: `[B, ..., C]`."""

  def __init__(self, channels: int, groups: int, eps: float, *, compute: Compute):
    self.compute = compute
    self.scale = parameter(channels)
    self.bias = parameter(channels)
    self.groups = groups
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    scale, bias = (weight(p, self.compute) for p in (self.scale, self.bias))
    return kernels.group_norm(x, scale, bias, self.groups, self.eps, compute=self.compute)


class LayerNorm(nnx.Module):
  """Normalisation over the last axis: `[..., C]`."""

  def __init__(self, channels: int, eps: float = 1e-5, *, compute: Compute):
    self.compute = compute
    self.scale = parameter(channels)
    self.bias = parameter(channels)
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    scale, bias = (weight(p, self.compute) for p in (self.scale, self.bias))
    return kernels.layer_norm(x, scale, bias, self.eps)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) * factor * scale over the last axis: `[..., C]`.

  The factor multiplies the parameter, where it costs no pass over the result.
  """

  def __init__(self, channels: int, eps: float = 1e-6, *, compute: Compute):
    self.compute = compute
    self.scale = parameter(channels)
    self.eps = eps

  def __call__(self, x: jax.Array, factor: float = 1.0) -> jax.Array:
    return kernels.rms_norm(x, weight(self.scale, self.compute, scale=factor), self.eps)


class Embedding(nnx.Module):
  """A table of vectors: integers `[...]` to `[..., C]`."""

  def __init__(self, entries: int, channels: int, *, compute: Compute):
    self.compute = compute
    self.embedding = parameter(entries, channels)

  def table(self) -> jax.Array:
    """All vectors, `[entries, C]`."""
    return weight(self.embedding, self.compute)

  def __call__(self, indices: jax.Array) -> jax.Array:
    return jnp.take(self.table(), indices, axis=0)


class Empty(nnx.Module):
  """A layer without parameters (dropout) in a numbered list."""
