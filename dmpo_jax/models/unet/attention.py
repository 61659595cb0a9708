"""Attention, feed-forward and transformer layers of the UNet's blocks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Conv, Empty, GroupNorm, LayerNorm, Linear


@dataclasses.dataclass(frozen=True)
class TransformerOptions:
  """Options of all layers of one Transformer2DModel.

  Attributes:
    heads: Attention heads.
    layers: Transformer layers.
    context: Channels of the text embedding.
    groups: Groups of the GroupNorm.
    linear_projection: Whether the projections in and out are linear layers or 1x1 convolutions.
    compute: How the layers compute.
  """

  heads: int
  layers: int
  context: int
  groups: int
  linear_projection: bool
  compute: Compute


class Attention(nnx.Module):
  """Multi-head attention of x `[B, L, C]` over a context `[B, M, D]`, or over itself."""

  def __init__(self, channels: int, context: int, heads: int, *, compute: Compute):
    self.compute = compute
    self.heads = heads
    self.to_q = Linear(channels, channels, bias=False, compute=compute)
    self.to_k = Linear(context, channels, bias=False, compute=compute)
    self.to_v = Linear(context, channels, bias=False, compute=compute)
    self.to_out = nnx.List([Linear(channels, channels, compute=compute), Empty()])

  def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    context = x if context is None else context
    scale = (x.shape[-1] // self.heads) ** -0.5  # of the scores; multiplies the weights of to_q
    q, k, v = (
      _named(y, self.compute).reshape(*y.shape[:2], self.heads, -1)  # [B, L or M, N, C/N]
      for y in (self.to_q(x, scale), self.to_k(context), self.to_v(context))
    )
    out = kernels.attention(q, k, v, scale=1.0, compute=self.compute)
    return _named(self.to_out[0](out.reshape(x.shape)), self.compute)


def _named(x: jax.Array, compute: Compute) -> jax.Array:
  """A projection that rematerialisation policies may save."""
  return remat.checkpoint_name(x, remat.PROJECTION, compute.remat)


class GEGLU(nnx.Module):
  """a * gelu(b) with [a, b] = x kernel + bias and the exact gelu."""

  def __init__(self, inputs: int, outputs: int, *, compute: Compute):
    self.compute = compute
    self.proj = Linear(inputs, 2 * outputs, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    value, gate = jnp.split(_named(self.proj(x), self.compute), 2, axis=-1)
    return value * kernels.gelu(gate)


class FeedForward(nnx.Module):
  """Two layers with 4 C channels in between: `[B, L, C]` to `[B, L, C]`."""

  def __init__(self, channels: int, *, compute: Compute):
    gate = GEGLU(channels, 4 * channels, compute=compute)
    self.net = nnx.List([gate, Empty(), Linear(4 * channels, channels, compute=compute)])

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
  """Self-attention, cross-attention to the text, feed-forward, each after a LayerNorm."""

  def __init__(self, channels: int, options: TransformerOptions):
    compute = options.compute
    self.norm1 = LayerNorm(channels, compute=compute)
    self.attn1 = Attention(channels, channels, options.heads, compute=compute)
    self.norm2 = LayerNorm(channels, compute=compute)
    self.attn2 = Attention(channels, options.context, options.heads, compute=compute)
    self.norm3 = LayerNorm(channels, compute=compute)
    self.ff = FeedForward(channels, compute=compute)

  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    x = x + self.attn1(self.norm1(x))
    x = x + self.attn2(self.norm2(x), context)
    return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
  """A residual transformer over the positions of an image, conditioned on the text.

  Call with x `[B, H, W, C]` and context `[B, L, D]`; returns `[B, H, W, C]`.
  """

  def __init__(self, channels: int, options: TransformerOptions):
    self.compute = compute = options.compute

    def project() -> nnx.Module:
      if options.linear_projection:
        return Linear(channels, channels, compute=compute)
      return Conv(channels, channels, 1, compute=compute)

    self.norm = GroupNorm(channels, options.groups, eps=1e-6, compute=compute)
    self.proj_in = project()
    self.transformer_blocks = nnx.List(
      [BasicTransformerBlock(channels, options) for _ in range(options.layers)]
    )
    self.proj_out = project()

  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    y = block(lambda x: self.proj_in(self.norm(x)).reshape(b, h * w, c), x)  # [B, H*W, C]
    for layer in self.transformer_blocks:
      y = block(layer, y, context)
    return block(lambda x, y: x + self.proj_out(y.reshape(b, h, w, c)), x, y)
