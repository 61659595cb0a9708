"""Stable Diffusion XL with DMPO on pairs from disk at 1024 pixels.

    dmpo-jax train --config configs/sdxl_dmpo.py --workdir runs/sdxl \\
      --config.data.folder=data/pairs --config.mesh.fsdp=16 --config.grad_accumulation_steps=64

Not run at full size: time and result are unknown. `dmpo-jax plan` shows the memory that it needs on
a TPU slice (docs/plan.md). beta and alpha are those of DMPO's public re-implementation for SDXL.
Batch size, steps, warm-up, the learning rate (1e-9 times the batch size) and Adafactor, which needs
less memory than AdamW, are those of Diffusion-DPO's public scripts. For cached latents:
configs/sdxl_dmpo.py:cached_latents.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import sd15_dmpo


def get_config(data: str = "pairs") -> ConfigDict:
  """Full fine-tuning of the UNet; VAE, text encoders and reference stay frozen."""
  config = sd15_dmpo.get_config(data)
  config.pipeline = "stabilityai/stable-diffusion-xl-base-1.0"
  if data == "pairs":
    config.data.size = 1024
  config.data.micro_conditioning = True
  config.loss.beta = 6000.0
  config.optimizer.name = "adafactor"
  config.optimizer.learning_rate = 2.048e-6
  return config
