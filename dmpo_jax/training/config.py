"""The keys of an experiment's config, their defaults, and their checks."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax.errors import InputError, unknown
from dmpo_jax.models import lora

# Sections whose keys depend on their `name`: whoever consumes them checks them.
OPEN_SECTIONS = ("data", "loss", "model", "timesteps")


def default() -> ConfigDict:
  """The config that every file under configs/ starts from: all keys, with neutral values."""
  config = ConfigDict()
  # Every random draw derives from it, the step, and the example's id.
  config.seed = 0

  # Folder in diffusers' format to start from; empty: a new network as `model` describes.
  config.pipeline = ""
  # diffusers' config fields by component: unet, text_encoder, scheduler. With a pipeline, only
  # scheduler may be given; it replaces fields of the pipeline's noise schedule.
  config.model = ConfigDict()
  # Components that are trained; the others stay frozen.
  config.trained = ("unet",)
  # In which UNet and text encoders compute: float32 or bfloat16. Parameters, their average, the
  # optimizer, errors and noise are float32 either way. In bfloat16 beside a reference, forwards are
  # computed again for the gradient, so that policy and reference are rounded alike.
  config.dtype = "float32"
  # LoRA instead of whole components: W + (alpha / rank) down up; rank 0: none.
  config.lora = ConfigDict()
  config.lora.rank = 0
  config.lora.alpha = 0.0
  # By component, patterns of the layers that get one; * matches dots too.
  config.lora.targets = ConfigDict()
  config.lora.targets.unet = lora.ATTENTION
  config.lora.targets.text_encoder = lora.TEXT_ATTENTION
  config.lora.targets.text_encoder_2 = lora.TEXT_ATTENTION
  # Whether errors of the frozen starting pipeline enter the loss: what the objective needs, no more
  # and no less (dmpo-jax objectives lists it). False saves a copy of the parameters and a forward.
  config.reference = True

  config.data = ConfigDict({"name": ""})
  config.loss = ConfigDict({"name": ""})
  config.timesteps = ConfigDict({"name": "uniform"})
  # Share of examples whose caption is replaced by the empty one (for classifier-free guidance).
  config.caption_dropout = 0.0

  # Examples (pairs, or single images) per step over all devices, and steps of the run.
  config.batch_size = 0
  config.num_steps = 0

  config.optimizer = ConfigDict()
  # The rate AdamW uses; nothing multiplies it by the batch size.
  config.optimizer.learning_rate = 0.0
  # Steps of linear warm-up from 0, then constant.
  config.optimizer.warmup_steps = 0
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.weight_decay = 1e-2
  # Global gradient norm above which the gradient is scaled down.
  config.optimizer.clip_norm = 1.0
  # Decay of the moving average of the trained parameters; 0: no average is kept.
  config.ema_decay = 0.0

  # Devices that share a batch; 0: all there are.
  config.num_devices = 0

  config.checkpoint = ConfigDict()
  # Steps between checkpoints (the last step is always saved), and how many are kept.
  config.checkpoint.every = 0
  config.checkpoint.keep = 2
  # Steps between rows of the metrics files.
  config.log_every = 1
  return config


def check(config: ConfigDict) -> ConfigDict:
  """The config, once its keys exist and its numbers make sense.

  Args:
    config: As a config file's `get_config()` returns it.

  Returns:
    A locked copy.

  Raises:
    InputError: A key is unknown (with the nearest known one), missing, or out of range.
  """
  config = ConfigDict(config)
  _check_keys(default(), config, "")

  def require(holds: bool, key: str, expected: str) -> None:
    value = config
    for part in key.split("."):
      value = value[part]
    if not holds:
      raise InputError(f"config.{key} must be {expected}, got {value!r}")

  require(config.batch_size > 0, "batch_size", "at least 1")
  require(config.num_steps > 0, "num_steps", "at least 1")
  require(0 <= config.seed < 2**32, "seed", "in [0, 2**32)")
  require(0 <= config.caption_dropout < 1, "caption_dropout", "in [0, 1)")
  require(0 <= config.ema_decay < 1, "ema_decay", "in [0, 1), 0 for none")
  require(config.num_devices >= 0, "num_devices", "at least 0 (0: all)")
  require(config.log_every > 0, "log_every", "at least 1")
  require(config.checkpoint.every > 0, "checkpoint.every", "at least 1")
  require(config.checkpoint.keep > 0, "checkpoint.keep", "at least 1")
  require(config.dtype in ("float32", "bfloat16"), "dtype", "'float32' or 'bfloat16'")
  require(config.lora.rank >= 0, "lora.rank", "at least 0 (0: no LoRA)")
  if config.lora.rank:
    require(config.lora.alpha > 0, "lora.alpha", "positive beside a rank (often the rank itself)")
  else:
    require(config.lora.alpha == 0, "lora.alpha", "0 without a rank; set config.lora.rank")
  require(len(config.trained) > 0, "trained", "a tuple of component names, e.g. ('unet',)")
  optimizer = config.optimizer
  require(optimizer.learning_rate > 0, "optimizer.learning_rate", "positive")
  require(optimizer.warmup_steps >= 0, "optimizer.warmup_steps", "at least 0")
  require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "at least 0")
  require(optimizer.clip_norm > 0, "optimizer.clip_norm", "positive")
  require(0 <= optimizer.b1 < 1, "optimizer.b1", "in [0, 1)")
  require(0 <= optimizer.b2 < 1, "optimizer.b2", "in [0, 1)")
  return config.lock()


def select(kind: str, section: Mapping[str, Any], options: Mapping[str, Callable]) -> tuple:
  """The function a section names, with the section's other keys as its keyword arguments.

  Args:
    kind: What the section selects, in words ("objective").
    section: A mapping with `name` and the function's keyword-only arguments.
    options: Functions by name.

  Returns:
    (function, keyword arguments).

  Raises:
    InputError: The name, or one of the keys, is not known, or a needed key is missing.
  """
  arguments = dict(section)
  name = arguments.pop("name", "")
  if name not in options:
    raise unknown(kind, name, options)
  function = options[name]
  parameters = {
    key: parameter
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }
  for key in arguments:
    if key not in parameters:
      raise unknown(f"key of {kind} {name!r}:", key, parameters)
  for key, parameter in parameters.items():
    if parameter.default is inspect.Parameter.empty and key not in arguments:
      raise InputError(f"{kind} {name!r} needs the key {key!r}; it has no default")
  return function, arguments


def _check_keys(known: ConfigDict, given: ConfigDict, prefix: str) -> None:
  for key in given:
    if key not in known:
      raise unknown("config key", prefix + key, [prefix + k for k in known])
  for key, value in known.items():
    if key not in given:
      raise InputError(f"config.{prefix}{key} is missing; start from dmpo_jax's default config")
    if isinstance(value, ConfigDict) and not (prefix == "" and key in OPEN_SECTIONS):
      _check_keys(value, given[key], f"{prefix}{key}.")
