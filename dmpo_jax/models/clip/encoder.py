"""The transformer layers of CLIP's text and image encoders."""

from functools import partial
from typing import Protocol

import jax
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import LayerNorm, Linear

ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": kernels.gelu,
}


class Layers(Protocol):
  """Fields of a config that shape the layers."""

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  hidden_act: str
  layer_norm_eps: float


class SelfAttention(nnx.Module):
  """Multi-head self-attention, causal in text encoders: `[B, L, D]` to `[B, L, D]`."""

  def __init__(self, config: Layers, compute: Compute, causal: bool):
    self.compute, self.causal = compute, causal
    width = config.hidden_size
    self.heads = config.num_attention_heads
    self.k_proj = Linear(width, width, compute=compute)
    self.v_proj = Linear(width, width, compute=compute)
    self.q_proj = Linear(width, width, compute=compute)
    self.out_proj = Linear(width, width, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    q, k, v = (
      remat.checkpoint_name(project(x), remat.PROJECTION, self.compute.remat).reshape(
        *x.shape[:2], self.heads, -1
      )  # [B, L, N, D/N]
      for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    out = kernels.attention(q, k, v, causal=self.causal, compute=self.compute)
    return self.out_proj(out.reshape(x.shape))


class MLP(nnx.Module):
  """Two layers with the config's activation: `[B, L, D]` to `[B, L, D]`."""

  def __init__(self, config: Layers, compute: Compute):
    self.compute = compute
    self.activation = config.hidden_act
    self.fc1 = Linear(config.hidden_size, config.intermediate_size, compute=compute)
    self.fc2 = Linear(config.intermediate_size, config.hidden_size, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = remat.checkpoint_name(self.fc1(x), remat.PROJECTION, self.compute.remat)
    return self.fc2(ACTIVATIONS[self.activation](x))


class EncoderLayer(nnx.Module):
  """Self-attention and MLP, each after a LayerNorm and with a residual connection."""

  def __init__(self, config: Layers, compute: Compute, causal: bool):
    norm = partial(LayerNorm, config.hidden_size, config.layer_norm_eps, compute=compute)
    self.self_attn = SelfAttention(config, compute, causal)
    self.layer_norm1 = norm()
    self.mlp = MLP(config, compute)
    self.layer_norm2 = norm()

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.self_attn(self.layer_norm1(x))
    return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
  """A stack of layers; returns the output and the input of the last one, `[B, L, D]` each."""

  def __init__(self, config: Layers, compute: Compute, causal: bool):
    self.compute = compute
    self.layers = nnx.List(
      [EncoderLayer(config, compute, causal) for _ in range(config.num_hidden_layers)]
    )

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    for layer in self.layers:
      before, x = x, remat.checkpoint_block(layer, x, policy=self.compute.remat)
    return x, before
