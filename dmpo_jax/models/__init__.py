"""Networks as pure functions of plain parameter trees: `build(config) -> Model(apply, init)`."""

from dmpo_jax.models import lora, remat, trees
from dmpo_jax.models.build import abstract, buffers, build, build_autoencoder, read_config
from dmpo_jax.models.clip.build import CLIP
from dmpo_jax.models.clip.text import TextOutput
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.fsdp import Placement, dividing_axes
from dmpo_jax.models.functional import Buffer, Model
from dmpo_jax.models.vae.build import Autoencoder, Posterior, sample_latents

__all__ = [
  "CLIP",
  "Autoencoder",
  "Buffer",
  "Compute",
  "Model",
  "Placement",
  "Posterior",
  "TextOutput",
  "abstract",
  "buffers",
  "build",
  "build_autoencoder",
  "dividing_axes",
  "lora",
  "read_config",
  "remat",
  "sample_latents",
  "trees",
]
