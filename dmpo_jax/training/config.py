"""The keys of an experiment's config, their defaults, and their checks."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError, placeholder

from dmpo_jax import models
from dmpo_jax.common.ranges import check_range
from dmpo_jax.errors import InputError, short, unknown
from dmpo_jax.training import config_rules, setup
from dmpo_jax.training.config_ranges import RANGES

OPTIMIZERS = ("adamw", "adafactor")
# Numbers that may be None; the comment of the key says what it means.
NULLABLE = ("samples.guidance", "evaluation.guidance")
# Former name of a key or section -> its name now, for the error about the former one.
RENAMED = {
  "accumulation": "grad_accumulation_steps",
  **{f"health.{key}": f"held_out.{key}" for key in ("every", "data", "split", "pairs", "bins")},
  "label_noise": "label_flip_rate",
}
# Former key that is a section now -> what to do about a value.
NOW_SECTIONS = {
  "reference": "the loss says whether it uses a reference; leave the value out, and set "
  "config.reference.kind where the reference is to move",
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
  "weights",  # of a potential's dual averaging
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
  # Whether a text-to-image pipeline becomes an editing one: its denoiser reads the source image,
  # with weights that start at zero (docs/editing.md).
  config.widen = False
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
  config.reference = ConfigDict()
  # How the loss's reference moves: "frozen": it stays the starting pipeline; "ema": it is an EMA of
  # the policy; "hard": it becomes the policy every few steps (docs/training.md).
  config.reference.kind = "frozen"
  # "ema": decay per step.
  config.reference.decay = 0.0
  # "hard": steps between copies of the policy.
  config.reference.every = 0
  # "ema", "hard": steps at the start of the run in which the reference stays frozen.
  config.reference.start = 0
  # Storage dtype of the reference's (with LoRA: the base's) kernels, float32 or config.dtype.
  config.reference_dtype = "float32"

  # Data set: a name in dmpo_jax.data.DATASETS and its options.
  config.data = ConfigDict({"name": ""})
  # Loss: a name in dmpo_jax.losses and its hyperparameters.
  config.loss = ConfigDict({"name": ""})
  config.beta = ConfigDict()
  # Unit of the score gap δ that beta grows with, beta (2σ(|δ|/unit) - 1), as PNAPO has it; it needs
  # config.data.score_gaps. 0: beta is the same for all pairs.
  config.beta.score_temperature = 0.0
  # Last step of the full beta; it then falls by a cosine to its half, as PNAPO has it.
  config.beta.decay_start = 0
  # Step from which beta is its half; 0: it does not fall.
  config.beta.decay_end = 0
  # Timestep sampler: a name in dmpo_jax.diffusion.timesteps (flow matching: flow_timesteps) and its
  # fields.
  config.timesteps = ConfigDict({"name": "uniform"})
  # Factor of the errors at each timestep: a name in dmpo_jax.diffusion.weights (flow matching:
  # flow_weights) and its fields.
  config.timestep_weights = ConfigDict({"name": "none"})
  # Probability that a caption is replaced by the empty one, for classifier-free guidance.
  config.caption_dropout = 0.0
  config.editing = ConfigDict()
  # Editing pipelines, in place of caption_dropout: probability that the caption alone is dropped.
  config.editing.caption_dropout = 0.05
  # Editing pipelines: probability that the source image alone is dropped.
  config.editing.source_dropout = 0.05
  # Editing pipelines: probability that both are dropped.
  config.editing.both_dropout = 0.05
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
  # Data-parallel size of the mesh, over all slices; 0: devices / fsdp.
  config.mesh.data = 0
  # FSDP size of the mesh: parameters, EMA, optimizer state and frozen networks are sharded over it.
  config.mesh.fsdp = 1
  # Number of TPU slices, each of which holds whole fsdp groups; 0: what the devices say.
  config.mesh.slices = 0

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

  config.health = ConfigDict()
  # Alarms that end the run, with the last checkpoint before them (docs/monitoring.md), from
  # gradient_spikes, preferred_rises, saturates, drifts; empty: alarms are printed alone.
  config.health.stop = ()
  # gradient_spikes: gradient norm over the median of the steps before it.
  config.health.spike = 10.0
  # gradient_spikes: steps of that median, and steps without a spike that end the alarm.
  config.health.spike_window = 20
  # preferred_rises: rise of the held-out error on preferred images, in standard errors.
  config.health.rise = 3.0
  # saturates: fraction of held-out pairs that are saturated.
  config.health.saturated = 0.9
  # saturates: a pair is saturated below this fraction of the gradient factor it had at the start.
  config.health.saturated_factor = 0.05
  # drifts: mean change of held-out errors since the start (of the policy, or of a reference that
  # moves), relative to the errors.
  config.health.drift = 0.5

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

  config.evaluation = ConfigDict()
  # Steps between evaluations of samples (docs/evaluation.md); 0: none.
  config.evaluation.every = 0
  # File of prompts, in any form that dmpo-jax evaluate reads.
  config.evaluation.prompts = ""
  # Number of prompts, evenly spaced over the file.
  config.evaluation.limit = 32
  # Images of each prompt.
  config.evaluation.seeds = 2
  # Scorers, each NAME[=WEIGHTS][,OPTION=VALUE]; dmpo-jax evaluate lists the names.
  config.evaluation.scorers = ()
  # Solver steps.
  config.evaluation.steps = 30
  # Guidance scale; 1 and less is none, as in diffusers; None: the pipeline's published one.
  config.evaluation.guidance = placeholder(float)

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
    InputError: A key is unknown (with the nearest known one) or missing, or a value has another
      type or is out of range (with its name and the range).
  """
  config = ConfigDict(config)
  check_keys(default(), config, "")

  def require(holds: bool, key: str, expected: str) -> None:
    if not holds:
      raise InputError(f"config.{key} must be {expected}, got {_shown(_get(config, key))}")

  if not config.pipeline:
    for key in ("revision", "variant"):
      require(not _get(config, key), key, "empty without a pipeline; set config.pipeline")
  for key, allowed in RANGES.items():
    value = _get(config, key)
    if value is not None or key not in NULLABLE:
      check_range(f"config.{key}", value, allowed)
  _check_names(config, require)
  require(
    config.batch_size % config.grad_accumulation_steps == 0,
    "grad_accumulation_steps",
    f"a divisor of config.batch_size {config.batch_size}",
  )
  config_rules.check_editing(config, require)
  config_rules.check_reference(config, require)
  config_rules.check_alarms(config)
  require(
    config.reference_dtype == "float32" or config.dtype == "bfloat16",
    "reference_dtype",
    "'float32' where config.dtype is: rounded weights would make the reference another network",
  )
  if config.lora.rank:
    require(config.lora.alpha >= 1e-6, "lora.alpha", "positive beside a rank (often the rank)")
  else:
    require(config.lora.alpha == 0, "lora.alpha", "0 without a rank; set config.lora.rank")
  optimizer = config.optimizer
  if optimizer.name != "adamw":
    require(
      optimizer.moment_dtype == "float32", "optimizer.moment_dtype", "'float32' but for AdamW"
    )
  require(
    optimizer.learning_rate * optimizer.weight_decay < 1,
    "optimizer.weight_decay",
    f"below 1/learning_rate (config.optimizer.learning_rate is {optimizer.learning_rate:g}): a "
    "step shrinks parameters by learning_rate * weight_decay",
  )
  if config.samples.every:
    expected = "at least one text where samples.every is set"
    require(len(config.samples.prompts) > 0, "samples.prompts", expected)
  if config.evaluation.every:
    for key in ("prompts", "scorers"):
      expected = f"set where evaluation.every is: {'a file' if key == 'prompts' else 'names'}"
      require(len(config.evaluation[key]) > 0, f"evaluation.{key}", expected)
  config_rules.check_loss(config.loss)
  setup.beta_factor(config)
  return config.lock()


def _check_names(config: ConfigDict, require: Callable[[bool, str, str], None]) -> None:
  """The values that are one of a few names."""
  require(config.remat in models.remat.POLICIES, "remat", f"one of {list(models.remat.POLICIES)}")
  require(config.optimizer.name in OPTIMIZERS, "optimizer.name", f"one of {OPTIMIZERS}")
  for key in ("dtype", "reference_dtype", "optimizer.moment_dtype"):
    require(_get(config, key) in ("float32", "bfloat16"), key, "'float32' or 'bfloat16'")


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


def check_keys(schema: ConfigDict, config: ConfigDict, prefix: str) -> None:
  """Checks the keys of a section and the types of its values.

  Args:
    schema: The section with its default values.
    config: The section to check.
    prefix: Its dotted name and a dot; empty for a whole config.

  Raises:
    InputError: A key is unknown (with the nearest known one) or missing, or a value has another
      type.
  """
  if not isinstance(config, ConfigDict):
    advice = f": {NOW_SECTIONS[prefix[:-1]]}" if prefix[:-1] in NOW_SECTIONS else ""
    raise InputError(
      f"config.{prefix[:-1]} must be a section (a ConfigDict), got {short(config)}{advice}"
    )
  for key in config:
    if key not in schema:
      raise unknown_key(f"{prefix}{key}", [prefix + k for k in schema])
  for key, value in schema.items():
    name = prefix + key
    if key not in config:
      raise InputError(f"config.{name} is missing; start from dmpo_jax's default config")
    try:
      actual = config[key]
    except RequiredValueError as error:
      raise InputError(f"config.{name} is not set: {error}") from error
    if isinstance(value, ConfigDict):
      check_keys(_keys_of(name, value, actual), actual, f"{name}.")
    elif isinstance(value, bool | str) and not isinstance(actual, type(value)):
      expected = "a text" if isinstance(value, str) else "True or False"
      raise InputError(f"config.{name} must be {expected}, got {_shown(actual)}")
    elif isinstance(value, tuple):
      values = [actual] if prefix == "lora.targets." and isinstance(actual, str) else actual
      kind = type(value[0]) if value else str
      if not (isinstance(values, tuple | list) and all(type(x) is kind for x in values)):
        expected = "texts" if kind is str else "whole numbers"
        raise InputError(f"config.{name} must be a tuple of {expected}, got {_shown(actual)}")


def _shown(value: Any) -> str:
  return short(value.to_dict() if isinstance(value, ConfigDict) else value)


def _keys_of(name: str, schema: ConfigDict, config: Any) -> ConfigDict:
  """The schema of a section; one of `OPEN_SECTIONS` has any keys beside a `name`."""
  if name not in OPEN_SECTIONS or not isinstance(config, ConfigDict):
    return schema
  patterns = ("",) if name == "lora.targets" else None
  return ConfigDict({**dict.fromkeys(config, patterns), **schema})
