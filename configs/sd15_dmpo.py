"""Stable Diffusion 1.5 aligned with DMPO on pairs from disk, with the published recipe's values.

    dmpo-jax data convert --help    # how data/pairs is made
    dmpo-jax train --config configs/sd15_dmpo.py --workdir runs/sd15 \\
      --config.data.folder=data/pairs

This project has not run it at full size: time, memory and scores are unknown. Batch, steps, rate,
warm-up and caption dropout are what the public scripts of Diffusion-DPO share (Pick-a-Pic v2
without ties, 512 pixels); beta and alpha are those of DMPO's public re-implementation. There is no
gradient accumulation: a batch that devices cannot hold has to be made smaller, and then the rate
too. For a LoRA: --config.lora.rank=16 --config.lora.alpha=16. A quarter of a step's arithmetic is
spared by `dmpo-jax data encode`, see docs/data.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config() -> ConfigDict:
  """Full fine-tuning of the UNet; VAE, text encoder and reference stay frozen."""
  config = default()
  config.pipeline = "stable-diffusion-v1-5/stable-diffusion-v1-5"
  config.data = ConfigDict(
    {
      "name": "pairs",
      "folder": "data/pairs",
      "split": "train",
      "size": 512,
      "crop": "center",
      "flip": True,
      "ties": "drop",
    }
  )
  config.loss = ConfigDict({"name": "dmpo", "beta": 2000.0, "alpha": 0.01})
  config.dtype = "bfloat16"
  config.caption_dropout = 0.2
  config.batch_size = 2048
  config.num_steps = 2000
  # The scripts' 1e-8 times their batch of 2048; the paper's text says (2000 / beta) 2.048e-8.
  config.optimizer.learning_rate = 2.048e-5
  config.optimizer.warmup_steps = 500
  config.checkpoint.every = 200
  return config
