"""The keys of an experiment's config, their defaults, and their checks."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dmpo_jax import models
from dmpo_jax.errors import InputError, unknown

OPTIMIZERS = ("adamw", "adafactor")
# Former name of a key or section -> its name now, for the error about the former one.
RENAMED = {
  "accumulation": "grad_accumulation_steps",
  "health": "held_out",
  "label_noise": "label_flip_rate",
}
# Sections whose keys are not fixed here: the code that uses a section checks them.
OPEN_SECTIONS = (
  "data",
  "held_out.data",
  "lora.targets",
  "loss",
  "model",
  "timesteps",
  "timestep_weights",
)


def default() -> ConfigDict:
  """The config that every file under configs/ starts from: all keys, with neutral values."""
  config = ConfigDict()
  # Seed of every random number, together with the step and the example's id.
  config.seed = 0

  # Pipeline to start from: a folder in diffusers' format or "owner/name" on the hub; empty: new.
  config.pipeline = ""
  # Branch, tag or commit of the pipeline's repository on the hub; empty: its main branch.
  config.revision = ""
  # Variant of the weights, such as "fp16" or "non_ema"; empty: weights without a variant.
  config.variant = ""
  # New networks: component -> its config. With a pipeline: {"scheduler": fields to override}.
  config.model = ConfigDict()
  # Components to train, e.g. ("unet", "text_encoder"); empty: the denoiser.
  config.trained = ()
  # Compute dtype of denoiser and text encoders, float32 or bfloat16; everything else is float32.
  config.dtype = "float32"
  config.lora = ConfigDict()
  # Rank of the LoRA to train; 0: train whole components.
  config.lora.rank = 0
  # Scale of the LoRA: W + (alpha / rank) down up.
  config.lora.alpha = 0.0
  # Glob patterns of the layers to adapt, per component; * matches dots too; empty: attention.
  config.lora.targets = ConfigDict()
  # Whether the loss uses errors of the frozen starting pipeline (dmpo-jax objectives lists it).
  config.reference = True
  # Storage dtype of the reference's (with LoRA: the base's) kernels, float32 or config.dtype.
  config.reference_dtype = "float32"

  # Data set: a name in dmpo_jax.data.DATASETS and its options.
  config.data = ConfigDict({"name": ""})
  # Loss: a name in dmpo_jax.losses and its hyperparameters.
  config.loss = ConfigDict({"name": ""})
  # Timestep sampler: a name in dmpo_jax.diffusion.timesteps (flow matching: flow_timesteps) and its
  # fields.
  config.timesteps = ConfigDict({"name": "uniform"})
  # Factor of the errors at each timestep: a name in dmpo_jax.diffusion.weights (flow matching:
  # flow_weights) and its fields.
  config.timestep_weights = ConfigDict({"name": "none"})
  # Probability that a caption is replaced by the empty one, for classifier-free guidance.
  config.caption_dropout = 0.0
  # Probability that a pair's label is flipped, the same pairs in every epoch; for experiments.
  config.label_flip_rate = 0.0

  # Global batch size in examples (pairs, or single images), over all devices.
  config.batch_size = 0
  # Optimizer steps of the run.
  config.num_steps = 0
  # Gradient accumulation: microbatches per step.
  config.grad_accumulation_steps = 1
  # Rematerialisation (activation checkpointing) policy, a name in dmpo_jax.models.remat.
  config.remat = "none"

  config.optimizer = ConfigDict()
  # "adamw", or "adafactor" with factored second moments.
  config.optimizer.name = "adamw"
  # Storage dtype of AdamW's first moments, float32 or bfloat16.
  config.optimizer.moment_dtype = "float32"
  # Peak learning rate; it is not scaled by the batch size.
  config.optimizer.learning_rate = 0.0
  # Steps of linear warm-up from 0; constant afterwards.
  config.optimizer.warmup_steps = 0
  # Decay of AdamW's first moments.
  config.optimizer.b1 = 0.9
  # Decay of AdamW's second moments.
  config.optimizer.b2 = 0.999
  # AdamW's epsilon.
  config.optimizer.eps = 1e-8
  # Decoupled weight decay: parameters shrink by learning_rate * weight_decay per step.
  config.optimizer.weight_decay = 1e-2
  # Global gradient norm above which gradients are scaled down.
  config.optimizer.clip_norm = 1.0
  # Decay of the EMA of the trained parameters; 0: no EMA.
  config.ema_decay = 0.0

  # Devices to use; 0: all.
  config.num_devices = 0
  config.mesh = ConfigDict()
  # Data-parallel size of the mesh; 0: devices / fsdp.
  config.mesh.data = 0
  # FSDP size of the mesh: parameters, EMA, optimizer state and frozen networks are sharded over it.
  config.mesh.fsdp = 1

  config.checkpoint = ConfigDict()
  # Steps between checkpoints; the last step is always saved.
  config.checkpoint.every = 0
  # Number of checkpoints to keep.
  config.checkpoint.keep = 2
  # Steps between records of metrics.
  config.log_every = 1

  config.held_out = ConfigDict()
  # Steps between held-out evaluations (docs/monitoring.md); 0: none.
  config.held_out.every = 0
  # Data section of the held-out pairs; without a name: config.data with the split below.
  config.held_out.data = ConfigDict({"name": ""})
  # Split of the held-out pairs.
  config.held_out.split = "validation"
  # Number of held-out pairs.
  config.held_out.pairs = 64
  # Number of timestep bins of equal length.
  config.held_out.bins = 5

  config.samples = ConfigDict()
  # Steps between sample grids; 0: none.
  config.samples.every = 0
  # Prompts of a grid, one row of images each.
  config.samples.prompts = ()
  # Columns of a grid: images of seeds 0, 1, ...
  config.samples.seeds = 4
  # Solver steps.
  config.samples.steps = 30
  # Guidance scale; 1 and less is none, as in diffusers; None: the pipeline's published one.
  config.samples.guidance = placeholder(float)

  config.profile = ConfigDict()
  # Steps before jax's profiler starts to trace.
  config.profile.start = 10
  # Number of steps to trace; 0: no trace.
  config.profile.steps = 0

  config.wandb = ConfigDict()
  # Weights & Biases project that receives the metrics too; empty: none.
  config.wandb.project = ""
  return config


def check(config: ConfigDict) -> ConfigDict:
  """A locked copy of a config whose keys and values are valid.

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

  for key in ("pipeline", "revision", "variant"):
    require(isinstance(_get(config, key), str), key, "a text")
    if not config.pipeline:
      require(not _get(config, key), key, "empty without a pipeline; set config.pipeline")
  require(config.batch_size > 0, "batch_size", "at least 1")
  require(config.num_steps > 0, "num_steps", "at least 1")
  require(0 <= config.seed < 2**32, "seed", "in [0, 2**32)")
  require(0 <= config.caption_dropout < 1, "caption_dropout", "in [0, 1)")
  require(0 <= config.ema_decay < 1, "ema_decay", "in [0, 1), 0 for none")
  require(0 <= config.label_flip_rate <= 1, "label_flip_rate", "in [0, 1]")
  require(config.num_devices >= 0, "num_devices", "at least 0 (0: all)")
  require(config.mesh.data >= 0, "mesh.data", "at least 0 (0: what fsdp leaves)")
  require(config.mesh.fsdp > 0, "mesh.fsdp", "at least 1")
  require(config.remat in models.remat.POLICIES, "remat", f"one of {list(models.remat.POLICIES)}")
  require(config.grad_accumulation_steps > 0, "grad_accumulation_steps", "at least 1")
  require(
    config.batch_size % config.grad_accumulation_steps == 0,
    "grad_accumulation_steps",
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
  scale = samples.guidance
  require(scale is None or math.isfinite(scale), "samples.guidance", "a finite number or None")
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
      return renamed_key(key, f"{new}{key.removeprefix(old)}")
  return unknown("config key", key, known)


def renamed_key(old: str, new: str) -> InputError:
  """The error for a former key, by its dotted name, which names the new one."""
  return InputError(f"config.{old} is called config.{new} now; rename it")


def _get(config: ConfigDict, key: str) -> Any:
  return functools.reduce(lambda section, part: section[part], key.split("."), config)


def _check_keys(schema: ConfigDict, config: ConfigDict, prefix: str) -> None:
  for key in config:
    if key not in schema:
      raise unknown_key(prefix + key, [prefix + k for k in schema])
  for key, value in schema.items():
    if key not in config:
      raise InputError(f"config.{prefix}{key} is missing; start from dmpo_jax's default config")
    if isinstance(value, ConfigDict) and prefix + key not in OPEN_SECTIONS:
      _check_keys(value, config[key], f"{prefix}{key}.")
