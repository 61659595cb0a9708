"""A LoRA for Stable Diffusion XL with DMPO on pairs from disk at 1024 pixels.

    dmpo-jax train --config configs/sdxl_dmpo_lora.py --workdir runs/sdxl \\
      --config.data.folder=data/pairs

Not run at full size: time and result are unknown. beta and alpha are those of DMPO's public
re-implementation for SDXL; batch size, steps and warm-up are those of sd15_dmpo. No learning rate
is published for a LoRA with this loss; 1e-5 is a value to start from.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import sdxl_dmpo


def get_config(data: str = "pairs") -> ConfigDict:
  """A LoRA on the UNet's attention; the base network is the reference."""
  config = sdxl_dmpo.get_config(data)
  config.lora.rank, config.lora.alpha = 16, 16.0
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 1e-5
  return config
