"""Embeddings of timesteps and of other numbers."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Linear


def sinusoids(timesteps: jax.Array, channels: int, *, flip: bool, shift: float) -> jax.Array:
  """Sines and cosines of t at geometrically spaced frequencies.

      f_k = 10000^(-k / (channels/2 - shift)),   [sin(t f), cos(t f)],  or cosines first if flip

  Args:
    timesteps: `[B]`, integers or floats.
    channels: Width of the result; an odd width ends in a zero.
    flip: Whether cosines come first.
    shift: `freq_shift` of the config.

  Returns:
    float32 `[B, channels]`.

  Source: arXiv 1706.03762, section 3.5, with the options of diffusers' config.
  """
  half = channels // 2
  frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000) / (half - shift)))
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]  # [B, channels/2]
  waves = (jnp.cos(angles), jnp.sin(angles)) if flip else (jnp.sin(angles), jnp.cos(angles))
  return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, channels % 2)))


class TimestepEmbedding(nnx.Module):
  """Two linear layers with SiLU in between: `[B, I]` to `[B, O]`."""

  def __init__(self, inputs: int, outputs: int, *, compute: Compute):
    self.linear_1 = Linear(inputs, outputs, compute=compute)
    self.linear_2 = Linear(outputs, outputs, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.linear_2(jax.nn.silu(self.linear_1(x)))
