"""A LoRA for Stable Diffusion XL, aligned with DMPO on pairs from disk at 1024 pixels.

    dmpo-jax train --config configs/sdxl_dmpo_lora.py --workdir runs/sdxl \\
      --config.data.folder=data/pairs

This project has not run it at full size: time and scores are unknown. beta and alpha are those of
DMPO's public re-implementation for SDXL, batch, steps and warm-up those of its SD1.5 recipe. No
rate is published for a LoRA with this objective; 1e-5 is a value to start from.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import sdxl_dmpo


def get_config(data: str = "pairs") -> ConfigDict:
  """The UNet's attention gets a LoRA; the base is the reference and is held once."""
  config = sdxl_dmpo.get_config(data)
  config.lora.rank, config.lora.alpha = 16, 16.0
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 1e-5
  return config
