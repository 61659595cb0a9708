"""Networks as pure functions of plain parameter trees: `build(config) -> Model(apply, init)`."""

from dmpo_jax.models import lora, trees
from dmpo_jax.models.autoencoder import Autoencoder, Moments, build_autoencoder, draw_latents
from dmpo_jax.models.build import Model, abstract, build
from dmpo_jax.models.clip_text import TextOutput

__all__ = [
  "Autoencoder",
  "Model",
  "Moments",
  "TextOutput",
  "abstract",
  "build",
  "build_autoencoder",
  "draw_latents",
  "lora",
  "trees",
]
