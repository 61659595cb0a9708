"""The keys of a scorer's config, their defaults, and their checks."""

from ml_collections import ConfigDict

from dmpo_jax.common.ranges import Integers, check_range
from dmpo_jax.errors import InputError
from dmpo_jax.training import config as training_config
from dmpo_jax.training.config_ranges import RANGES

# Sections of a policy's config that a scorer's has, too.
SHARED = ("optimizer", "mesh", "checkpoint", "wandb")
SHARED_NUMBERS = ("seed", "batch_size", "num_steps", "ema_decay", "num_devices", "log_every")


def default() -> ConfigDict:
  """The config that a scorer's file under configs/ starts from: all keys, with neutral values."""
  training = training_config.default()
  config = ConfigDict({key: training[key] for key in (*SHARED, *SHARED_NUMBERS)})
  # CLIP model to start from: a folder of transformers' CLIPModel with its tokenizer, or
  # "owner/name" on the hub; empty: a new one.
  config.pretrained = ""
  # A new model: fields of transformers' CLIPConfig (text_config, vision_config, projection_dim);
  # its vocabulary is the words of the training captions.
  config.model = ConfigDict()
  # Compute dtype, float32 or bfloat16.
  config.dtype = "float32"
  # Pairs to train on: "pairs" or "mixture" of dmpo_jax.data.DATASETS, and its options; `size` is
  # the image_size of the model.
  config.data = ConfigDict({"name": "pairs"})
  # Augmentation: both images of a pair are shifted alike by up to so many pixels.
  config.shift = 0
  # Label smoothing: fraction of the label that is given to the other image.
  config.label_smoothing = 0.0
  config.held_out = ConfigDict()
  # Steps between held-out evaluations; 0: at the end alone.
  config.held_out.every = 0
  # Split of config.data.folder whose captions are held out; empty: none.
  config.held_out.split = "validation"
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
  training_config.check_keys(default(), config, "")
  for key, allowed in RANGES.items():
    section, _, name = key.rpartition(".")
    if section in (*SHARED, "held_out") and name in config[section]:
      check_range(f"config.{key}", config[section][name], allowed)
    elif not section and name in SHARED_NUMBERS:
      check_range(f"config.{key}", config[name], allowed)
  check_range("config.shift", config.shift, Integers(0, 1024))

  def require(holds: bool, key: str, expected: str) -> None:
    if not holds:
      raise InputError(f"config.{key} must be {expected}, got {config.to_dict()[key]!r}")

  require(config.dtype in ("float32", "bfloat16"), "dtype", "'float32' or 'bfloat16'")
  smoothing = config.label_smoothing
  number = isinstance(smoothing, int | float) and not isinstance(smoothing, bool)
  require(number and 0 <= smoothing < 0.5, "label_smoothing", "a number in [0, 0.5)")
  if config.optimizer.name not in training_config.OPTIMIZERS:
    raise InputError(
      f"config.optimizer.name must be one of {training_config.OPTIMIZERS}, got "
      f"{config.optimizer.name!r}"
    )
  if bool(config.pretrained) == bool(config.model):
    raise InputError(
      "set either config.pretrained, a CLIP model to start from, or config.model, the fields of a "
      "new one's CLIPConfig"
    )
  if config.data.get("name") not in ("pairs", "mixture"):
    raise InputError(
      f"config.data.name must be 'pairs' or 'mixture', got {config.data.get('name')!r}: a scorer "
      "learns from pairs of images"
    )
  return config.lock()
