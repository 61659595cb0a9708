"""The config of runs in several processes: a tiny network whose arrays are sharded nevertheless.

Its argument is "steps", for an ordinary run, "slices" or "gradient". In "gradient" the parameters
after the first step are -1e17 times the gradient, to a relative 1e-7: AdamW with an eps far above
the gradient is steepest descent, and the initial parameters vanish in rounding. The loss of the
second step is not finite. That run is evaluated and sampled, and its checkpoints take seconds to
write.

With several processes their devices alternate in the mesh, as on a TPU slice: no process has
consecutive rows of a batch. In "slices" they do not, so that a process can be a slice.
"""

import functools
import time

import jax
import orbax.checkpoint as ocp

from dmpo_jax.common.ranges import Interval
from dmpo_jax.parallel import sharding
from dmpo_jax.training import config_ranges
from tests.training.tiny import smallest_config

# What makes AdamW steepest descent lies outside of the ranges.
FREE = dict.fromkeys(("optimizer.learning_rate", "optimizer.eps"), Interval(0, 1e38))

if jax.process_count() > 1:  # with one process the test sets them
  config_ranges.RANGES.update(FREE)
  sharding.SMALLEST = 64  # shards arrays of a tiny network


def delayed(method):
  """Delays a method by five seconds; a method that is delayed already stays as it is."""

  @functools.wraps(method)
  def called(*args):
    time.sleep(5)
    return called.__wrapped__(*args)

  return method if hasattr(method, "__wrapped__") else called


def get_config(kind="steps"):
  if jax.process_count() > 1 and kind != "slices":
    alternating = sorted(jax.devices(), key=lambda device: device.id % 2)
    sharding.make_mesh = functools.partial(sharding.make_mesh, devices=alternating)
  config = smallest_config()
  config.num_devices, config.batch_size = 0, 8
  config.trained, config.ema_decay = ("unet",), 0.9
  config.num_steps, config.checkpoint.every, config.checkpoint.keep = 60, 4, 1000
  config.optimizer.learning_rate = 1e-4
  if kind == "gradient":
    if jax.process_count() > 1:
      handler = ocp.StandardCheckpointHandler
      handler.finalize = delayed(handler.finalize)
    config.num_steps, config.checkpoint.every, config.ema_decay = 1, 1, 0.0
    config.held_out.update({"every": 3, "split": "test", "pairs": 16, "bins": 2})
    config.samples.update({"every": 3, "prompts": ("the digit one",), "seeds": 3, "steps": 1})
    config.optimizer.update(
      {"warmup_steps": 0, "eps": 1e3, "learning_rate": 1e20, "weight_decay": 0.0, "clip_norm": 1e9}
    )
  return config
