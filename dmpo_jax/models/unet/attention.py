"""Attention, feed-forward and the transformer over image positions that the UNet's blocks hold."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.layers import Conv, Empty, GroupNorm, LayerNorm, Linear


@dataclasses.dataclass(frozen=True)
class TransformerOptions:
  """What all layers of one Transformer2DModel share: widths in channels, counts."""

  heads: int
  layers: int
  context: int  # channels of the text embedding
  groups: int
  linear_projection: bool


class Attention(nnx.Module):
  """Multi-head attention of x `[B, L, C]` over a context `[B, M, D]`, or over itself."""

  def __init__(self, channels: int, context: int, heads: int):
    self.heads = heads
    self.to_q = Linear(channels, channels, bias=False)
    self.to_k = Linear(context, channels, bias=False)
    self.to_v = Linear(context, channels, bias=False)
    self.to_out = nnx.List([Linear(channels, channels), Empty()])

  def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    context = x if context is None else context
    scale = (x.shape[-1] // self.heads) ** -0.5  # of the scores, taken to the weights
    q, k, v = (
      _kept(y).reshape(*y.shape[:2], self.heads, -1)  # [B, L or M, N, C/N]
      for y in (self.to_q(x, scale), self.to_k(context), self.to_v(context))
    )
    out = kernels.attention(q, k, v, scale=1.0)
    return _kept(self.to_out[0](out.reshape(x.shape)))


def _kept(x: jax.Array) -> jax.Array:
  return remat.keep(x, remat.PROJECTION)


class GEGLU(nnx.Module):
  """a * gelu(b) with [a, b] = x kernel + bias; gelu is the exact one."""

  def __init__(self, inputs: int, outputs: int):
    self.proj = Linear(inputs, 2 * outputs)

  def __call__(self, x: jax.Array) -> jax.Array:
    value, gate = jnp.split(_kept(self.proj(x)), 2, axis=-1)
    return value * kernels.gelu(gate)


class FeedForward(nnx.Module):
  """Two layers, four times as wide in between: `[B, L, C]` to `[B, L, C]`."""

  def __init__(self, channels: int):
    self.net = nnx.List([GEGLU(channels, 4 * channels), Empty(), Linear(4 * channels, channels)])

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
  """Self-attention, cross-attention to the text, feed-forward, each behind a LayerNorm."""

  def __init__(self, channels: int, options: TransformerOptions):
    self.norm1 = LayerNorm(channels)
    self.attn1 = Attention(channels, channels, options.heads)
    self.norm2 = LayerNorm(channels)
    self.attn2 = Attention(channels, options.context, options.heads)
    self.norm3 = LayerNorm(channels)
    self.ff = FeedForward(channels)

  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    x = x + self.attn1(self.norm1(x))
    x = x + self.attn2(self.norm2(x), context)
    return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
  """A residual transformer over the positions of an image, reading the text.

  Call with x `[B, H, W, C]` and context `[B, L, D]`; returns `[B, H, W, C]`.
  """

  def __init__(self, channels: int, options: TransformerOptions):
    def project() -> nnx.Module:
      return (
        Linear(channels, channels) if options.linear_projection else Conv(channels, channels, 1)
      )

    self.norm = GroupNorm(channels, options.groups, eps=1e-6)
    self.proj_in = project()
    self.transformer_blocks = nnx.List(
      [BasicTransformerBlock(channels, options) for _ in range(options.layers)]
    )
    self.proj_out = project()

  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = remat.block(lambda x: self.proj_in(self.norm(x)).reshape(b, h * w, c), x)  # [B, H*W, C]
    for layer in self.transformer_blocks:
      y = remat.block(layer, y, context)
    return remat.block(lambda x, y: x + self.proj_out(y.reshape(b, h, w, c)), x, y)
