"""The keys of a potential's config, their defaults, and their checks."""

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax.common.ranges import Integers, Interval, check_number, check_range
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.pipelines.steering import LEARNED_DRIFTS
from dmpo_jax.training import config as train_config
from dmpo_jax.training.config_ranges import RANGES as TRAIN_RANGES

_POSITIVE, _COUNT = Interval(0, 1e6), Integers(1, 10**6)
# Losses and weights by name -> the numbers they take, with ranges.
LOSSES: dict[str, Mapping[str, Interval]] = {
  "rlhf": {},
  "dpo": {"gamma": _POSITIVE},
  "kto": {"gamma": _POSITIVE, "desirable_weight": _POSITIVE, "undesirable_weight": _POSITIVE},
}
WEIGHTS: dict[str, Mapping[str, Interval]] = {
  "averaging": {"beta_prime": _POSITIVE},
  "proximal": {"tau": _POSITIVE},
}
RANGES = {
  "seed": Integers(0, 2**31 - 1),
  "samples.per_prompt": Integers(4, 10**6),
  "samples.held_out": Integers(2, 10**5),
  "samples.steps": Integers(1, 2**16),
  "samples.guidance": Interval(0, 1e3, closed_low=True),
  "samples.batch_size": _COUNT,
  "score.temperature": _POSITIVE,
  "beta": _POSITIVE,
  "num_loops": Integers(1, 1000),
  "steps_per_loop": _COUNT,
  "groups": _COUNT,
  "group_size": Integers(4, 10**5),
  "network.groups": _COUNT,
  "network.bound": Interval(0, 1e3),
  "drift.num_steps": _COUNT,
  "min_ess": Interval(0, 1, closed_low=True),
  "num_devices": Integers(0, 2**20),
  "mesh.data": Integers(0, 2**20),
  "mesh.fsdp": _COUNT,
  "checkpoint.every": _COUNT,
  "checkpoint.keep": _COUNT,
  "log_every": _COUNT,
}
# Keys that may change between two starts of a run.
MUTABLE_KEYS = ("checkpoint", "log_every", "num_devices", "mesh")


def default() -> ConfigDict:
  """The config that a potential's config file starts from: all keys, with neutral values."""
  config = ConfigDict()
  # Seed of every random number.
  config.seed = 0
  # The reference: a pipeline folder or "owner/name" on the hub.
  config.pipeline = ""
  # Branch, tag or commit of the pipeline's repository on the hub; empty: its main branch.
  config.revision = ""
  # Variant of the weights; empty: weights without a variant.
  config.variant = ""

  # Captions that the potential is learned for.
  config.prompts = ()
  config.samples = ConfigDict()
  # Samples of the reference for each prompt, held-out ones included.
  config.samples.per_prompt = 400
  # Those of them that measure the loss and are not trained on.
  config.samples.held_out = 100
  # Solver steps of the reference.
  config.samples.steps = 20
  # Guidance scale of the reference: p_ref is what the pipeline samples with it.
  config.samples.guidance = 1.0
  # Images sampled at a time.
  config.samples.batch_size = 100
  # Scored pairs in the place of the reference's samples: a name in dmpo_jax.data.DATASETS and its
  # options. Their images should be samples of the reference; another density is not corrected.
  config.data = ConfigDict({"name": ""})
  config.score = ConfigDict()
  # Score of images: "ink" of digits, or a scorer NAME[=WEIGHTS] of dmpo_jax.evaluation.scorers.
  config.score.name = ""
  # Difference of the score at which the odds of a preference are e : 1; the reward is
  # score/temperature.
  config.score.temperature = 1.0

  # F of the loss F(q) + beta KL(q || p_ref): "rlhf"; "dpo" with gamma; "kto" with gamma,
  # desirable_weight and undesirable_weight.
  config.loss = ConfigDict({"name": ""})
  # Weight of the KL divergence.
  config.beta = 1.0
  # Dual averaging, "averaging" with beta_prime; or mirror steps, "proximal" with tau.
  config.weights = ConfigDict({"name": "averaging", "beta_prime": 1.0})
  # K, loops of the iteration.
  config.num_loops = 3
  # Optimizer steps of each loop.
  config.steps_per_loop = 200
  # Captions of a step, each with group_size images.
  config.groups = 8
  # Images of a caption in a step, which estimate its Z and its mean over y.
  config.group_size = 32

  config.network = ConfigDict()
  # Channels of each level; height and width halve between two levels.
  config.network.widths = (32, 64)
  # Groups of the GroupNorms.
  config.network.groups = 8
  # Bound of |f|.
  config.network.bound = 8.0
  config.drift = ConfigDict()
  # Drift to learn after the loops: "log_h" or "denoising"; empty: none, samplers simulate it.
  config.drift.name = ""
  # Optimizer steps of it.
  config.drift.num_steps = 1000
  # Effective sample size, as a fraction, below which the run stops.
  config.min_ess = 0.02

  # As in training; the learning rate falls by a cosine within each loop.
  config.optimizer = train_config.default().optimizer
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 0.0

  # Devices to use; 0: all.
  config.num_devices = 0
  # As in training.
  config.mesh = ConfigDict({"data": 0, "fsdp": 1})
  config.checkpoint = ConfigDict()
  # Steps between checkpoints; the last step is always saved.
  config.checkpoint.every = 200
  # Number of checkpoints to keep.
  config.checkpoint.keep = 2
  # Steps between records of metrics.
  config.log_every = 10
  return config


def check(config: ConfigDict) -> ConfigDict:
  """A locked copy of a config whose keys and values are valid.

  Args:
    config: As a config file's `get_config()` returns it.

  Returns:
    A locked copy.

  Raises:
    InputError: A key is unknown or missing, or a value has another type or is out of range.
  """
  config = ConfigDict(config)
  train_config.check_keys(default(), config, "")
  for key, allowed in RANGES.items():
    check_range(f"config.{key}", _get(config, key), allowed)
  for key, allowed in TRAIN_RANGES.items():
    if key.startswith("optimizer."):
      check_range(f"config.{key}", _get(config, key), allowed)
  _check_choice("loss", config.loss, LOSSES)
  _check_choice("weights", config.weights, WEIGHTS)
  if config.drift.name and config.drift.name not in LEARNED_DRIFTS:
    raise unknown("drift in config.drift.name", config.drift.name, LEARNED_DRIFTS)
  if config.data.name and config.loss.name != "dpo":
    raise InputError(
      f"config.data names pairs, which the loss 'dpo' takes; {config.loss.name!r} needs a score of "
      "the reference's samples: leave config.data out, or set config.loss.name=dpo"
    )
  if not config.data.name and not config.prompts:
    raise InputError("config.prompts is empty; name the captions, or pairs in config.data")
  if not config.data.name and not config.score.name:
    raise InputError("config.score.name is empty; name the score that is to rise")
  if config.samples.held_out >= config.samples.per_prompt:
    raise InputError(
      f"config.samples.held_out {config.samples.held_out} must be below config.samples.per_prompt "
      f"{config.samples.per_prompt}"
    )
  if config.group_size % 2:
    raise InputError(f"config.group_size must be even, got {config.group_size}")
  return config.lock()


def total_steps(config: ConfigDict) -> int:
  """Optimizer steps of a run: those of all loops and of the drift."""
  return config.num_loops * config.steps_per_loop + drift_steps(config)


def drift_steps(config: ConfigDict) -> int:
  """Optimizer steps of the learned drift; 0 without one."""
  return config.drift.num_steps if config.drift.name else 0


def _check_choice(name: str, section: ConfigDict, choices: Mapping[str, Mapping]) -> None:
  """Checks a section of a name and its numbers."""
  if section.name not in choices:
    raise unknown(f"name in config.{name}", section.name, choices)
  numbers = choices[section.name]
  if set(section) != {"name", *numbers}:
    raise InputError(
      f"config.{name} {section.name!r} has the keys {sorted(numbers)}, got "
      f"{sorted(set(section) - {'name'})}"
    )
  for key, allowed in numbers.items():
    check_number(f"config.{name}.{key}", section[key], allowed)


def _get(config: ConfigDict, key: str) -> Any:
  return functools.reduce(lambda section, part: section[part], key.split("."), config)
