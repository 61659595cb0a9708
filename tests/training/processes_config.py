"""The config of runs in several processes: the smallest network, its arrays split all the same.

The argument after the colon chooses: "steps" learns as a run does. In "gradient" the first step
ends with parameters of -1e17 times the gradient, to 1e-7 of them: an AdamW whose eps is far above
the gradient is steepest descent, and in so long a step the parameters before are lost. The second
step's loss is not finite. That run is watched, and its checkpoints take seconds to be written.

Where there are several processes, their devices stand in turns in the mesh, as those of a TPU slice
do: no process holds rows of a batch that follow each other.
"""

import functools
import time

import jax
import orbax.checkpoint as ocp

from dmpo_jax.parallel import sharding
from tests.training.tiny import smallest_config

if jax.process_count() > 1:  # else whoever reads this file decides for itself
  sharding.SMALLEST = 64  # or arrays of this size would not be split
  in_turns = sorted(jax.devices(), key=lambda device: device.id % 2)
  sharding.make_mesh = functools.partial(sharding.make_mesh, devices=in_turns)


def slowly(method):
  """The method after five seconds; once, however often this file is read."""

  @functools.wraps(method)
  def called(*args):
    time.sleep(5)
    return called.__wrapped__(*args)

  return method if hasattr(method, "__wrapped__") else called


def get_config(kind="steps"):
  config = smallest_config()
  config.num_devices, config.batch_size = 0, 8
  config.trained, config.ema_decay = ("unet",), 0.9
  config.num_steps, config.checkpoint.every, config.checkpoint.keep = 60, 4, 1000
  config.optimizer.learning_rate = 1e-4
  if kind == "gradient":
    if jax.process_count() > 1:
      handler = ocp.StandardCheckpointHandler
      handler.finalize = slowly(handler.finalize)
    config.num_steps, config.checkpoint.every, config.ema_decay = 1, 1, 0.0
    config.held_out.update({"every": 3, "split": "test", "pairs": 16, "bins": 2})
    config.samples.update({"every": 3, "prompts": ("the digit one",), "seeds": 3, "steps": 1})
    config.optimizer.update(
      {"warmup_steps": 0, "eps": 1e3, "learning_rate": 1e20, "weight_decay": 0.0, "clip_norm": 1e9}
    )
  return config
