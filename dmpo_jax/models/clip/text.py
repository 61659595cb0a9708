"""CLIP's text encoders, with and without projection, with transformers' names and arithmetic."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models.clip.config import CLIPTextConfig
from dmpo_jax.models.clip.encoder import Encoder
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Embedding, LayerNorm, Linear


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


class TextTransformer(nnx.Module):
  """Embeddings, encoder, final LayerNorm and pooling."""

  def __init__(self, config: CLIPTextConfig, compute: Compute):
    self.end = config.eos_token_id
    self.embeddings = Embeddings(config, compute)
    self.encoder = Encoder(config, compute, causal=True)
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
