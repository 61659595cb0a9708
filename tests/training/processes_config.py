"""The config of the runs in several processes: the smallest network, its arrays sharded all the same.

The argument after the colon chooses: "steps" learns as a run does; in "gradient" the first step ends
with parameters of -1e4 times the gradient, to 1e-7 of them: an AdamW whose eps is far above the
gradient is steepest descent, and in so long a step the parameters before are lost.
"""

from dmpo_jax.training import sharding
from tests.training.tiny import smallest_config

sharding.SMALLEST = 64  # or arrays of this size would not be split


def get_config(kind="steps"):
  config = smallest_config()
  config.num_devices, config.batch_size = 0, 8
  config.trained, config.ema_decay = ("unet",), 0.9
  config.num_steps, config.checkpoint.every, config.checkpoint.keep = 8, 2, 8
  if kind == "gradient":
    config.num_steps, config.ema_decay = 1, 0.0
    config.optimizer.update(
      {"warmup_steps": 0, "eps": 1e3, "learning_rate": 1e7, "weight_decay": 0, "clip_norm": 1e9}
    )
  return config
