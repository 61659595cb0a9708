"""Stable Diffusion 1.5 with DMPO on pairs from disk, with the values of published recipes.

    dmpo-jax data convert --help    # how to make data/pairs
    dmpo-jax train --config configs/sd15_dmpo.py --workdir runs/sd15 \\
      --config.data.folder=data/pairs

Not run at full size: time and result are unknown. `dmpo-jax plan` shows the memory that it needs on
a TPU slice (docs/plan.md). Batch size, steps, learning rate, warm-up and caption dropout are those
of Diffusion-DPO's public scripts (Pick-a-Pic v2 without ties, 512 pixels); beta and alpha are those
of DMPO's public re-implementation. On 16 chips with FSDP and 8 pairs per chip, a batch has 16
microbatches:

    --config.mesh.fsdp=16 --config.grad_accumulation_steps=16

On cached latents (`dmpo-jax data cache-latents`): --config configs/sd15_dmpo.py:cached_latents
--config.data.folder=data/latents. For a LoRA: --config.lora.rank=16 --config.lora.alpha=16.
"""

from ml_collections import ConfigDict

from dmpo_jax.errors import unknown
from dmpo_jax.training.config import default


def get_config(data: str = "pairs") -> ConfigDict:
  """Full fine-tuning of the UNet; VAE, text encoder and reference stay frozen.

  Args:
    data: "pairs": images of a converted folder; "cached_latents": their cached latents.
  """
  config = default()
  config.pipeline = "stable-diffusion-v1-5/stable-diffusion-v1-5"
  sections = {
    "pairs": {
      "name": "pairs",
      "folder": "data/pairs",
      "split": "train",
      "size": 512,
      "crop": "center",
      "flip": True,
      "ties": "drop",
    },
    "cached_latents": {"name": "cached_latents", "folder": "data/latents", "ties": "drop"},
  }
  if data not in sections:
    renamed = {"encoded": "cached_latents"}
    raise unknown("argument of the config file", data, sections, renamed=renamed)
  config.data = ConfigDict(sections[data])
  config.loss = ConfigDict({"name": "dmpo", "beta": 2000.0, "alpha": 0.01})
  config.dtype = config.reference_dtype = "bfloat16"
  config.remat = "convolutions"
  config.caption_dropout = 0.2
  config.batch_size = 2048
  config.num_steps = 2000
  # 1e-8 times the batch size, as in the public scripts; the paper has (2000 / beta) 2.048e-8.
  config.optimizer.learning_rate = 2.048e-5
  config.optimizer.warmup_steps = 500
  config.checkpoint.every = 200
  return config
