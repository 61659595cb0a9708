"""The keys of an experiment's config, their defaults, and their checks."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax import models
from dmpo_jax.errors import InputError, unknown

OPTIMIZERS = ("adamw", "adafactor")
# Former name of a key or section -> its name now, for the error about the former one.
RENAMED = {"health": "held_out"}
# Sections whose keys depend on their `name`: whoever consumes them checks them.
OPEN_SECTIONS = ("data", "held_out.data", "loss", "model", "timesteps", "timestep_weights")


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
  # optimizer, errors and noise are float32 either way. In bfloat16 beside a reference, remat "none"
  # and "weights" compute each forward again for the gradient, so that policy and reference are
  # rounded alike; with the other policies they are without that.
  config.dtype = "float32"
  # LoRA instead of whole components: W + (alpha / rank) down up; rank 0: none.
  config.lora = ConfigDict()
  config.lora.rank = 0
  config.lora.alpha = 0.0
  # By component, patterns of the layers that get one; * matches dots too.
  config.lora.targets = ConfigDict()
  config.lora.targets.unet = models.lora.ATTENTION
  config.lora.targets.text_encoder = models.lora.TEXT_ATTENTION
  config.lora.targets.text_encoder_2 = models.lora.TEXT_ATTENTION
  # Whether errors of the frozen starting pipeline enter the loss: what the objective needs, no more
  # and no less (dmpo-jax objectives lists it). False saves a copy of the parameters and a forward.
  config.reference = True
  # In which the kernels of the frozen reference (with LoRA: of the base) are held: float32, or,
  # where config.dtype is bfloat16, bfloat16. They are rounded to that where they are used anyway;
  # with LoRA it is the base that is rounded, and what is added to it then.
  config.reference_dtype = "float32"

  config.data = ConfigDict({"name": ""})
  config.loss = ConfigDict({"name": ""})
  config.timesteps = ConfigDict({"name": "uniform"})
  # What errors are multiplied by at each timestep, see dmpo_jax.diffusion.weights.
  config.timestep_weights = ConfigDict({"name": "none"})
  # Share of examples whose caption is replaced by the empty one (for classifier-free guidance).
  config.caption_dropout = 0.0
  # Share of pairs whose images change places, the same ones in every epoch: for experiments.
  config.label_noise = 0.0

  # Examples (pairs, or single images) per step over all devices, and steps of the run.
  config.batch_size = 0
  config.num_steps = 0
  # Parts in which a batch is gone through; their gradients are summed for one optimizer step.
  config.accumulation = 1
  # What of a forward is computed again for its gradient instead of kept in memory, see
  # dmpo_jax.models.remat.
  config.remat = "none"

  config.optimizer = ConfigDict()
  # "adamw" or "adafactor", which keeps a row and a column of second moments for each matrix.
  config.optimizer.name = "adamw"
  # In which AdamW keeps first moments: float32 or bfloat16.
  config.optimizer.moment_dtype = "float32"
  # The rate the optimizer uses; nothing multiplies it by the batch size.
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

  # Devices that are used; 0: all there are.
  config.num_devices = 0
  # They are data x fsdp: a batch is split over all of them, parameters, their average, optimizer
  # state and frozen networks over fsdp. data 0: what fsdp leaves.
  config.mesh = ConfigDict()
  config.mesh.data = 0
  config.mesh.fsdp = 1

  config.checkpoint = ConfigDict()
  # Steps between checkpoints (the last step is always saved), and how many are kept.
  config.checkpoint.every = 0
  config.checkpoint.keep = 2
  # Steps between rows of the metrics files.
  config.log_every = 1

  # Held-out evaluation, see docs/monitoring.md: steps between evaluations; 0: none.
  config.held_out = ConfigDict()
  config.held_out.every = 0
  # Data section of the held-out pairs; without a name: config.data with the split below.
  config.held_out.data = ConfigDict({"name": ""})
  config.held_out.split = "validation"
  # Number of pairs, and number of timestep bins of equal length.
  config.held_out.pairs = 64
  config.held_out.bins = 5

  # Sample grids: steps between them; 0: none.
  config.samples = ConfigDict()
  config.samples.every = 0
  # A row of images for each prompt, a column for each of the seeds 0, 1, ...
  config.samples.prompts = ()
  config.samples.seeds = 4
  # Steps of the solver, and guidance; 0: the usual one of such pipelines.
  config.samples.steps = 30
  config.samples.guidance = 0.0

  # jax's profiler: steps to trace, and those taken before; 0 steps: no trace.
  config.profile = ConfigDict()
  config.profile.start = 10
  config.profile.steps = 0

  # Project of Weights & Biases that gets the metrics too; empty: none.
  config.wandb = ConfigDict()
  config.wandb.project = ""
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
    if not holds:
      raise InputError(f"config.{key} must be {expected}, got {_get(config, key)!r}")

  require(config.batch_size > 0, "batch_size", "at least 1")
  require(config.num_steps > 0, "num_steps", "at least 1")
  require(0 <= config.seed < 2**32, "seed", "in [0, 2**32)")
  require(0 <= config.caption_dropout < 1, "caption_dropout", "in [0, 1)")
  require(0 <= config.ema_decay < 1, "ema_decay", "in [0, 1), 0 for none")
  require(0 <= config.label_noise <= 1, "label_noise", "in [0, 1]")
  require(config.num_devices >= 0, "num_devices", "at least 0 (0: all)")
  require(config.mesh.data >= 0, "mesh.data", "at least 0 (0: what fsdp leaves)")
  require(config.mesh.fsdp > 0, "mesh.fsdp", "at least 1")
  require(config.remat in models.remat.POLICIES, "remat", f"one of {list(models.remat.POLICIES)}")
  require(config.accumulation > 0, "accumulation", "at least 1")
  require(
    config.batch_size % config.accumulation == 0,
    "accumulation",
    f"a divisor of config.batch_size {config.batch_size}",
  )
  require(config.log_every > 0, "log_every", "at least 1")
  require(config.checkpoint.every > 0, "checkpoint.every", "at least 1")
  require(config.checkpoint.keep > 0, "checkpoint.keep", "at least 1")
  for key in ("dtype", "reference_dtype", "optimizer.moment_dtype"):
    require(_get(config, key) in ("float32", "bfloat16"), key, "'float32' or 'bfloat16'")
  require(
    config.reference_dtype == "float32" or config.dtype == "bfloat16",
    "reference_dtype",
    "'float32' where config.dtype is: rounded weights would make the reference another network",
  )
  require(config.lora.rank >= 0, "lora.rank", "at least 0 (0: no LoRA)")
  if config.lora.rank:
    require(config.lora.alpha > 0, "lora.alpha", "positive beside a rank (often the rank itself)")
  else:
    require(config.lora.alpha == 0, "lora.alpha", "0 without a rank; set config.lora.rank")
  require(len(config.trained) > 0, "trained", "a tuple of component names, e.g. ('unet',)")
  optimizer = config.optimizer
  require(optimizer.name in OPTIMIZERS, "optimizer.name", f"one of {OPTIMIZERS}")
  if optimizer.name != "adamw":
    require(
      optimizer.moment_dtype == "float32", "optimizer.moment_dtype", "'float32' but for AdamW"
    )
  require(optimizer.learning_rate > 0, "optimizer.learning_rate", "positive")
  require(optimizer.warmup_steps >= 0, "optimizer.warmup_steps", "at least 0")
  require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "at least 0")
  require(optimizer.clip_norm > 0, "optimizer.clip_norm", "positive")
  require(0 <= optimizer.b1 < 1, "optimizer.b1", "in [0, 1)")
  require(0 <= optimizer.b2 < 1, "optimizer.b2", "in [0, 1)")
  _check_watching(config, require)
  return config.lock()


def _check_watching(config: ConfigDict, require: Callable[[bool, str, str], None]) -> None:
  """The sections of what a run does beside its steps."""
  require(config.held_out.every >= 0, "held_out.every", "at least 0 (0: none)")
  require(config.held_out.pairs > 0, "held_out.pairs", "at least 1")
  require(config.held_out.bins > 0, "held_out.bins", "at least 1")
  samples = config.samples
  require(samples.every >= 0, "samples.every", "at least 0 (0: none)")
  prompts = samples.prompts
  are_prompts = isinstance(prompts, tuple | list) and all(isinstance(p, str) for p in prompts)
  require(are_prompts, "samples.prompts", "a tuple of texts")
  if samples.every:
    require(len(prompts) > 0, "samples.prompts", "at least one text where samples.every is set")
  require(samples.seeds > 0, "samples.seeds", "at least 1")
  require(samples.steps > 0, "samples.steps", "at least 1")
  require(config.profile.start >= 0, "profile.start", "at least 0")
  require(config.profile.steps >= 0, "profile.steps", "at least 0 (0: no trace)")


def unknown_key(key: str, known: Iterable[str]) -> InputError:
  """The error for a key that no config has.

  Args:
    key: The dotted key.
    known: Dotted keys beside it, one of which is suggested.

  Returns:
    An `InputError` that names the key's new name if it is in `RENAMED`, else the nearest known one.
  """
  for old, new in RENAMED.items():
    if key == old or key.startswith(f"{old}."):
      return InputError(
        f"config.{key} is called config.{new}{key.removeprefix(old)} now; rename it"
      )
  return unknown("config key", key, known)


def _get(config: ConfigDict, key: str) -> Any:
  return functools.reduce(lambda section, part: section[part], key.split("."), config)


def _check_keys(known: ConfigDict, given: ConfigDict, prefix: str) -> None:
  for key in given:
    if key not in known:
      raise unknown_key(prefix + key, [prefix + k for k in known])
  for key, value in known.items():
    if key not in given:
      raise InputError(f"config.{prefix}{key} is missing; start from dmpo_jax's default config")
    if isinstance(value, ConfigDict) and prefix + key not in OPEN_SECTIONS:
      _check_keys(value, given[key], f"{prefix}{key}.")
