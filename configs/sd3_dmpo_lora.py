"""A LoRA for Stable Diffusion 3 medium with DMPO, by flow matching, on pairs from disk.

    dmpo-jax train --config configs/sd3_dmpo_lora.py --workdir runs/sd3 \\
      --config.data.folder=data/pairs

Not run at full size: time and result are unknown. All values are those of
configs/sd35_dmpo_lora.py, which says where they come from.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import sd35_dmpo_lora


def get_config(data: str = "pairs") -> ConfigDict:
  """sd35_dmpo_lora for another pipeline."""
  config = sd35_dmpo_lora.get_config(data)
  config.pipeline = "stabilityai/stable-diffusion-3-medium-diffusers"
  return config
