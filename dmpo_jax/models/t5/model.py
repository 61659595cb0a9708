"""T5's encoder, T5EncoderModel, with transformers' names and arithmetic."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import kernels, remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Embedding, Linear, RMSNorm
from dmpo_jax.models.t5.config import T5Config

# Tokens of a caption, of which a layer holds the scores of all pairs.
MOST_TOKENS = 8192


def buckets(length: int, count: int, max_distance: int) -> np.ndarray:
  """Bucket of the distance between each two tokens, int32 `[queries, keys]`.

  Half of the buckets are for later tokens. Of each half, one half is for single distances, the
  other for ranges that grow geometrically up to max_distance.

  Args:
    length: Number of tokens.
    count: Number of buckets, divisible by 4.
    max_distance: From this distance on all share the last bucket; more than count / 4.

  Source: arXiv 1910.10683, section 2.1; transformers' T5Attention.
  """
  positions = np.arange(length)
  distance = positions[None, :] - positions[:, None]
  half, exact = count // 2, count // 4
  away = np.abs(distance)
  with np.errstate(divide="ignore"):
    logs = np.log(away.astype(np.float32) / np.float32(exact))
  # In float32, as in torch: at the borders of ranges rounding decides.
  far = logs / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
  far = exact + np.maximum(far, 0).astype(np.int32)
  bucket = np.where(away < exact, away, np.minimum(far, half - 1))
  return (bucket + (distance > 0) * half).astype(np.int32)


class SelfAttention(nnx.Module):
  """Multi-head self-attention with a bias for each distance: `[B, L, C]` to `[B, L, C]`.

  Scores are not divided by the root of the width. All layers share the first layer's biases.
  """

  def __init__(self, config: T5Config, first: bool, compute: Compute):
    self.config, self.compute = config, compute
    inner = config.num_heads * config.d_kv
    self.q = Linear(config.d_model, inner, bias=False, compute=compute)
    self.k = Linear(config.d_model, inner, bias=False, compute=compute)
    self.v = Linear(config.d_model, inner, bias=False, compute=compute)
    self.o = Linear(inner, config.d_model, bias=False, compute=compute)
    count = config.relative_attention_num_buckets
    self.relative_attention_bias = (
      Embedding(count, config.num_heads, compute=compute) if first else None
    )

  def biases(self, length: int) -> jax.Array:
    """Biases of the scores, `[1, N, L, L]`."""
    config = self.config
    count, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    table = self.relative_attention_bias(buckets(length, count, distance))  # [L, L, N]
    return table.transpose(2, 0, 1)[None]

  def __call__(self, x: jax.Array, biases: jax.Array) -> jax.Array:
    q, k, v = (
      remat.checkpoint_name(project(x), remat.PROJECTION, self.compute.remat).reshape(
        *x.shape[:2], self.config.num_heads, -1
      )  # [B, L, N, D]
      for project in (self.q, self.k, self.v)
    )
    out = kernels.attention(q, k, v, scale=1.0, bias=biases, compute=self.compute)
    return self.o(out.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
  """relu(x A) B, or gelu(x A_0) (x A_1) B: `[B, L, C]` to `[B, L, C]`."""

  def __init__(self, config: T5Config, compute: Compute):
    self.compute = compute

    def linear(inputs: int, outputs: int) -> Linear:
      return Linear(inputs, outputs, bias=False, compute=compute)

    wide = (config.d_model, config.d_ff)
    self.wi = None if config.gated else linear(*wide)
    self.wi_0, self.wi_1 = (linear(*wide), linear(*wide)) if config.gated else (None, None)
    self.wo = linear(config.d_ff, config.d_model)

  def __call__(self, x: jax.Array) -> jax.Array:
    def named(layer: Linear) -> jax.Array:
      return remat.checkpoint_name(layer(x), remat.PROJECTION, self.compute.remat)

    if self.wi is not None:
      return self.wo(jax.nn.relu(named(self.wi)))
    return self.wo(kernels.gelu_tanh(named(self.wi_0)) * named(self.wi_1))


class AttentionLayer(nnx.Module):
  """x + attention of the normalised x."""

  def __init__(self, config: T5Config, first: bool, compute: Compute):
    self.SelfAttention = SelfAttention(config, first, compute)
    self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, compute=compute)

  def __call__(self, x: jax.Array, biases: jax.Array) -> jax.Array:
    return x + self.SelfAttention(self.layer_norm(x), biases)


class FeedForwardLayer(nnx.Module):
  """x + feed-forward of the normalised x."""

  def __init__(self, config: T5Config, compute: Compute):
    self.DenseReluDense = FeedForward(config, compute)
    self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
  """Self-attention, then feed-forward."""

  def __init__(self, config: T5Config, first: bool, compute: Compute):
    attention = AttentionLayer(config, first, compute)
    self.layer = nnx.List([attention, FeedForwardLayer(config, compute)])

  def __call__(self, x: jax.Array, biases: jax.Array) -> jax.Array:
    return self.layer[1](self.layer[0](x, biases))


class Encoder(nnx.Module):
  """The blocks and the last norm: `[B, L, C]` to `[B, L, C]`."""

  def __init__(self, config: T5Config, compute: Compute):
    self.compute = compute
    self.block = nnx.List([Block(config, i == 0, compute) for i in range(config.num_layers)])
    self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    biases = self.block[0].layer[0].SelfAttention.biases(x.shape[1])
    for block in self.block:
      x = remat.checkpoint_block(block, x, biases, policy=self.compute.remat)
    return self.final_layer_norm(x)


class T5EncoderModel(nnx.Module):
  """Encodes token ids `[B, L]` to `[B, L, C]`; padding is a token like others."""

  def __init__(self, config: T5Config, compute: Compute):
    self.config, self.compute = config, compute
    self.shared = Embedding(config.vocab_size, config.d_model, compute=compute)
    self.encoder = Encoder(config, compute)

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Encodes token ids `[B, L]` in the given dtype."""
    return self.encoder(self.shared(ids).astype(dtype))


def check_inputs(ids: jax.Array) -> None:
  """Raises InputError unless ids are integers `[B, L]`."""
  if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer) or ids.shape[1] > MOST_TOKENS:
    raise InputError(
      f"input_ids must be integers [B, L] with L <= {MOST_TOKENS}, "
      f"got {ids.dtype} {list(ids.shape)}"
    )
