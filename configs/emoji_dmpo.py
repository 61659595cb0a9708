"""The emoji model aligned with DMPO on pairs of its own samples, the more colourful one preferred.

    dmpo-jax train --config configs/emoji_dmpo.py --workdir runs/emoji/dmpo

docs/emoji.md has the commands that make the pairs. Any converted folder of pairs can stand in their
place: --config.data.folder=data/mine
"""

from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config() -> ConfigDict:
  """Full fine-tuning of the network; text encoder and reference stay frozen."""
  config = default()
  config.pipeline = "runs/emoji/reference/pipeline"
  config.data = ConfigDict({"name": "pairs", "folder": "data/emoji_pairs", "size": 16})
  config.loss = ConfigDict({"name": "dmpo", "beta": 1000.0, "alpha": 0.01})
  config.timesteps.name = "stratified"
  config.caption_dropout = 0.1
  config.batch_size = 32
  config.num_steps = 120
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_steps = 20
  config.ema_decay = 0.98
  config.checkpoint.every = 40
  return config
