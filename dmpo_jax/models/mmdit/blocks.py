"""Layers of the MMDiT: adaptive norms, joint attention, feed-forward, and the joint block."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Empty, Linear, RMSNorm

EPS = 1e-6  # of every norm


def _named(x: jax.Array, compute: Compute) -> jax.Array:
  """A product that rematerialisation policies may save."""
  return remat.checkpoint_name(x, remat.PROJECTION, compute.remat)


def _settled(x: jax.Array) -> jax.Array:
  """Queries or keys per head, in their dtype.

  Without the barrier XLA converts them to the norm's float32 first and moves twice the bytes to the
  layout of heads.
  """
  return jax.lax.optimization_barrier(x)


class Modulation(nnx.Module):
  """Shifts, scales and gates: the activated conditioning `[B, C]` to `parts` arrays `[B, C]`."""

  def __init__(self, channels: int, parts: int, *, compute: Compute):
    self.compute = compute
    self.parts = parts
    self.linear = Linear(channels, parts * channels, compute=compute)

  def __call__(self, conditioning: jax.Array) -> list[jax.Array]:
    return jnp.split(_named(self.linear(conditioning), self.compute), self.parts, axis=-1)


class ContinuousNorm(nnx.Module):
  """AdaLayerNormContinuous: (1 + scale) n(x) + shift, `[B, L, C]`."""

  def __init__(self, channels: int, *, compute: Compute):
    self.compute = compute
    self.linear = Linear(channels, 2 * channels, compute=compute)

  def __call__(self, x: jax.Array, conditioning: jax.Array) -> jax.Array:
    scale, shift = jnp.split(_named(self.linear(conditioning), self.compute), 2, axis=-1)
    return kernels.modulated_norm(x, shift, scale, EPS)


class Attention(nnx.Module):
  """Attention over an image's patches, or over them and the text together.

  Both streams have projections and norms of their own.

  Args:
    channels: Channels of both streams.
    heads: Attention heads.
    norm: Whether queries and keys are normalised, per head.
    joint: Whether there is a text stream.
    text_output: Whether the text stream has a result.
    compute: How the layer computes.
  """

  def __init__(
    self,
    channels: int,
    heads: int,
    norm: bool,
    *,
    joint: bool,
    text_output: bool = True,
    compute: Compute,
  ):
    self.compute, self.heads = compute, heads
    self.text_output = joint and text_output
    linear = partial(Linear, channels, channels, compute=compute)
    rms = partial(RMSNorm, channels // heads, EPS, compute=compute)
    self.norm_q, self.norm_k = (rms(), rms()) if norm else (None, None)
    self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
    self.to_out = nnx.List([linear(), Empty()])
    self.add_q_proj, self.add_k_proj, self.add_v_proj = (
      (linear(), linear(), linear()) if joint else (None, None, None)
    )
    self.to_add_out = linear() if self.text_output else None
    self.norm_added_q, self.norm_added_k = (rms(), rms()) if norm and joint else (None, None)

  def __call__(
    self, x: jax.Array, text: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Attends over patches x `[B, L, C]` and, of joint attention, the text `[B, M, C]`.

    Returns:
      Results `[B, L, C]` for the patches and `[B, M, C]` for the text; None where the text has
      none.
    """
    scale = (x.shape[-1] // self.heads) ** -0.5  # of the scores; multiplies parameters
    q = self._queries(x, self.to_q, self.norm_q, scale)
    k, v = self._project(x, self.to_k, self.norm_k), self._project(x, self.to_v)
    if text is not None:
      if self.text_output:
        added = self._queries(text, self.add_q_proj, self.norm_added_q, scale)
        q = jnp.concatenate([q, added], axis=1)
      added = self._project(text, self.add_k_proj, self.norm_added_k)
      k = jnp.concatenate([k, added], axis=1)
      v = jnp.concatenate([v, self._project(text, self.add_v_proj)], axis=1)
    out = kernels.attention(q, k, v, scale=1.0, compute=self.compute)
    out = out.reshape(*out.shape[:2], -1)  # [B, L + M, C]
    patches, length = self.to_out[0](out[:, : x.shape[1]]), x.shape[1]
    patches = _named(patches, self.compute)
    if not self.text_output:
      return patches, None
    return patches, _named(self.to_add_out(out[:, length:]), self.compute)

  def _queries(self, x: jax.Array, linear: Linear, norm: RMSNorm | None, scale: float) -> jax.Array:
    """Scaled queries per head."""
    if norm is None:
      return self._heads(linear(x, scale))
    return norm(_settled(self._heads(linear(x))), scale)

  def _project(self, x: jax.Array, linear: Linear, norm: RMSNorm | None = None) -> jax.Array:
    """Keys or values per head."""
    y = self._heads(linear(x))
    return y if norm is None else norm(_settled(y))

  def _heads(self, x: jax.Array) -> jax.Array:
    """`[B, L, C]` to `[B, L, N, C / N]`."""
    return _named(x, self.compute).reshape(*x.shape[:2], self.heads, -1)


class GELU(nnx.Module):
  """gelu(x kernel + bias) with the approximation by tanh."""

  def __init__(self, inputs: int, outputs: int, *, compute: Compute):
    self.compute = compute
    self.proj = Linear(inputs, outputs, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return kernels.gelu_tanh(_named(self.proj(x), self.compute))


class FeedForward(nnx.Module):
  """Two layers with 4 C channels in between: `[B, L, C]` to `[B, L, C]`."""

  def __init__(self, channels: int, *, compute: Compute):
    self.compute = compute
    first = GELU(channels, 4 * channels, compute=compute)
    self.net = nnx.List([first, Empty(), Linear(4 * channels, channels, compute=compute)])

  def __call__(self, x: jax.Array) -> jax.Array:
    return _named(self.net[2](self.net[0](x)), self.compute)  # the gradient of its gate reads it


class JointTransformerBlock(nnx.Module):
  """Attention over both streams, then a feed-forward layer of each, with adaptive norms.

  Args:
    channels: Channels of both streams.
    heads: Attention heads.
    norm: Whether queries and keys are normalised.
    dual: Whether there is a second attention, over the image alone.
    text_output: Whether the block has a text stream after its attention; the last one has none.
    compute: How the block computes.
  """

  def __init__(
    self,
    channels: int,
    heads: int,
    norm: bool,
    *,
    dual: bool,
    text_output: bool,
    compute: Compute,
  ):
    attention = partial(Attention, channels, heads, norm, compute=compute)
    self.compute, self.text_output = compute, text_output
    self.norm1 = Modulation(channels, 9 if dual else 6, compute=compute)
    self.norm1_context = (
      Modulation(channels, 6, compute=compute)
      if text_output
      else ContinuousNorm(channels, compute=compute)
    )
    self.attn = attention(joint=True, text_output=text_output)
    self.attn2 = attention(joint=False) if dual else None
    self.ff = FeedForward(channels, compute=compute)
    self.ff_context = FeedForward(channels, compute=compute) if text_output else None

  def __call__(
    self, x: jax.Array, text: jax.Array, conditioning: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """Next patches `[B, L, C]` and text `[B, M, C]`, or None in its place.

    Args:
      x: `[B, L, C]`.
      text: `[B, M, C]`.
      conditioning: `[B, C]`, activated.
    """
    shift, scale, gate, *mlp = self.norm1(conditioning)
    y = kernels.modulated_norm(x, shift, scale, EPS)
    if self.text_output:
      text_shift, text_scale, text_gate, *text_mlp = self.norm1_context(conditioning)
      y_text = kernels.modulated_norm(text, text_shift, text_scale, EPS)
    else:
      y_text = self.norm1_context(text, conditioning)
    attended, attended_text = self.attn(y, y_text)
    after = x + gate[:, None, :] * attended
    if self.attn2 is not None:
      *mlp, shift, scale, gate = mlp
      attended, _ = self.attn2(kernels.modulated_norm(x, shift, scale, EPS))
      after = after + gate[:, None, :] * attended
    after = _feed_forward(after, self.ff, mlp)
    if not self.text_output:
      return after, None
    text = text + text_gate[:, None, :] * attended_text
    return after, _feed_forward(text, self.ff_context, text_mlp)


def _feed_forward(x: jax.Array, layer: FeedForward, modulation: list[jax.Array]) -> jax.Array:
  """x + gate layer((1 + scale) n(x) + shift), modulation = [shift, scale, gate]."""
  shift, scale, gate = modulation
  return x + gate[:, None, :] * layer(kernels.modulated_norm(x, shift, scale, EPS))
