"""A small model that edits handwritten digits, the base of digits_edit_dmpo and digits_edit_dpo.

    dmpo-jax train --config configs/digits_edit_reference.py --workdir runs/edit_reference

InstructPix2Pix at 8x8 pixels: the UNet of digits_reference reads the source image beside the noisy
one. Its edits are of uneven quality, see data/toy/digit_edits.py. Result: docs/editing.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_reference


def get_config() -> ConfigDict:
  """digits_reference with a source image and edits in place of captioned digits."""
  config = digits_reference.get_config()
  config.model["_class_name"] = "StableDiffusionInstructPix2PixPipeline"
  config.model.unet.in_channels = 2
  config.data = ConfigDict({"name": "digit_edits", "num_edits": 20_000, "seed": 0})
  config.num_steps = 500
  config.caption_dropout = 0.0  # config.editing drops instructions and sources
  return config
