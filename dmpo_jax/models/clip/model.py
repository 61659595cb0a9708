"""A whole CLIPModel: encoders of images and texts into one space, with transformers' names."""

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models.clip.model_config import CLIPConfig
from dmpo_jax.models.clip.text import TextTransformer
from dmpo_jax.models.clip.vision import VisionTransformer
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Linear, parameter


class CLIPModel(nnx.Module):
  """Both encoders, their projections, and the logarithm of the scale of similarities."""

  def __init__(self, config: CLIPConfig, compute: Compute):
    self.config, self.compute = config, compute
    self.text_model = TextTransformer(config.text, compute)
    self.vision_model = VisionTransformer(config.vision, compute)
    width = config.projection_dim
    projection = {"outputs": width, "bias": False, "compute": compute}
    self.visual_projection = Linear(config.vision.hidden_size, **projection)
    self.text_projection = Linear(config.text.hidden_size, **projection)
    self.logit_scale = parameter()

  def image(self, images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Embeddings `[B, P]` of normalised images `[B, S, S, 3]` in the given dtype."""
    return self.visual_projection(self.vision_model(images.astype(dtype)))

  def text(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Embeddings `[B, P]` of token ids `[B, L]` in the given dtype."""
    return self.text_projection(self.text_model(ids, dtype).pooled)
