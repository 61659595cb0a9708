"""CLIP's text encoders, with and without projection, with transformers' names and arithmetic."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import kernels, remat
from dmpo_jax.models.clip.config import CLIPTextConfig
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Embedding, LayerNorm, Linear

ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": kernels.gelu,
}


class TextOutput(NamedTuple):
  """Outputs of a text encoder.

  Attributes:
    last_hidden_state: `[B, L, D]`, after the final LayerNorm.
    penultimate: `[B, L, D]`, the input of the last layer, without a norm: transformers'
      `hidden_states[-2]`, SDXL's text embedding.
    pooled: `[B, D]`, the row of last_hidden_state at the end-of-text token, or the first row
      without one.
    text_embeds: `[B, P]`, the projection of pooled; None for a CLIPTextModel.
  """

  last_hidden_state: jax.Array
  penultimate: jax.Array
  pooled: jax.Array
  text_embeds: jax.Array | None = None


class Embeddings(nnx.Module):
  """Token embedding plus position embedding: int `[B, L]` to `[B, L, D]`."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    embedding = partial(Embedding, channels=config.hidden_size, compute=compute)
    self.token_embedding = embedding(config.vocab_size)
    self.position_embedding = embedding(config.max_position_embeddings)

  def __call__(self, ids: jax.Array) -> jax.Array:
    positions = self.position_embedding.table()[: ids.shape[1]]  # [L, D]
    return self.token_embedding(ids) + positions[None]


class SelfAttention(nnx.Module):
  """Causal multi-head self-attention: `[B, L, D]` to `[B, L, D]`."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    self.compute = compute
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
    out = kernels.attention(q, k, v, causal=True, compute=self.compute)
    return self.out_proj(out.reshape(x.shape))


class MLP(nnx.Module):
  """Two layers with the config's activation: `[B, L, D]` to `[B, L, D]`."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    self.compute = compute
    self.activation = config.hidden_act
    self.fc1 = Linear(config.hidden_size, config.intermediate_size, compute=compute)
    self.fc2 = Linear(config.intermediate_size, config.hidden_size, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = remat.checkpoint_name(self.fc1(x), remat.PROJECTION, self.compute.remat)
    return self.fc2(ACTIVATIONS[self.activation](x))


class EncoderLayer(nnx.Module):
  """Self-attention and MLP, each after a LayerNorm and with a residual connection."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    norm = partial(LayerNorm, config.hidden_size, config.layer_norm_eps, compute=compute)
    self.self_attn = SelfAttention(config, compute)
    self.layer_norm1 = norm()
    self.mlp = MLP(config, compute)
    self.layer_norm2 = norm()

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.self_attn(self.layer_norm1(x))
    return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
  """A stack of layers; returns the output and the input of the last one, `[B, L, D]` each."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    self.compute = compute
    self.layers = nnx.List([EncoderLayer(config, compute) for _ in range(config.num_hidden_layers)])

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    for layer in self.layers:
      before, x = x, remat.checkpoint_block(layer, x, policy=self.compute.remat)
    return x, before


class TextTransformer(nnx.Module):
  """Embeddings, encoder, final LayerNorm and pooling."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    self.end = config.eos_token_id
    self.embeddings = Embeddings(config, compute)
    self.encoder = Encoder(config, compute)
    self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, compute=compute)

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> TextOutput:
    x, penultimate = self.encoder(self.embeddings(ids).astype(dtype))
    x = self.final_layer_norm(x)
    # Configs from before transformers 4.31 have a wrong end token, 2. For these alone the end of
    # the text is the token with the largest id.
    end = jnp.argmax(ids if self.end == 2 else ids == self.end, axis=-1)  # [B]
    return TextOutput(x, penultimate, x[jnp.arange(x.shape[0]), end])


class CLIPTextModel(nnx.Module):
  """CLIPTextModel, or CLIPTextModelWithProjection if the config has a `projection_dim`.

  The encoder has the prefix `text_model` of published checkpoints.
  """

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    self.config, self.compute = config, compute
    self.text_model = TextTransformer(config, compute)
    width = config.projection_dim
    self.text_projection = (
      None if width is None else Linear(config.hidden_size, width, bias=False, compute=compute)
    )

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> TextOutput:
    """Encodes token ids `[B, L]`, L at most `max_position_embeddings`, in the given dtype."""
    output = self.text_model(ids, dtype)
    if self.text_projection is None:
      return output
    return output._replace(text_embeds=self.text_projection(output.pooled))


def check_inputs(config: CLIPTextConfig, ids: jax.Array) -> None:
  """Raises InputError unless ids are integers `[B, L]` with L within the position table."""
  longest = config.max_position_embeddings
  if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer) or ids.shape[1] > longest:
    raise InputError(
      f"input_ids must be integers [B, L] with L <= {longest} (max_position_embeddings), "
      f"got {ids.dtype} {list(ids.shape)}; truncate the captions"
    )
