"""DMPO on pairs of the emoji model's own samples; the more colourful one is mostly preferred.

    dmpo-jax train --config configs/emoji_dmpo.py --workdir runs/emoji/dmpo

Data, time and result: docs/emoji.md. --config.data.folder=data/mine trains on any other converted
folder of pairs.
"""

from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config() -> ConfigDict:
  """Full fine-tuning of the UNet; text encoder and reference stay frozen."""
  config = default()
  config.pipeline = "runs/emoji/reference/pipeline"
  config.data = ConfigDict({"name": "pairs", "folder": "data/emoji_pairs", "size": 16})
  config.loss = ConfigDict({"name": "dmpo", "beta": 1000.0, "alpha": 0.01})
  config.timesteps.name = "stratified"
  config.caption_dropout = 0.1
  config.batch_size = 32
  config.num_steps = 100
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 20
  config.ema_decay = 0.98
  config.checkpoint.every = 50
  return config
