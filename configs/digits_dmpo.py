"""DMPO on handwritten digits, on pairs in which heavier strokes are mostly preferred.

    dmpo-jax train --config configs/digits_dmpo.py --workdir runs/dmpo \
      --config.pipeline=runs/reference/pipeline

Time: about a minute on two cores of an AMD EPYC, a third of it compiling. Result:
docs/quickstart.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config() -> ConfigDict:
  """Full fine-tuning of the UNet; text encoder and reference stay frozen."""
  config = default()
  config.pipeline = "runs/reference/pipeline"
  config.data = ConfigDict(
    {"name": "digit_pairs", "num_pairs": 4000, "temperature": 0.03, "seed": 1}
  )
  config.loss = ConfigDict({"name": "dmpo", "beta": 1000.0, "alpha": 0.01})
  config.caption_dropout = 0.1
  config.batch_size = 32
  config.num_steps = 160
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_steps = 20
  config.ema_decay = 0.99
  config.checkpoint.every = 40
  return config
