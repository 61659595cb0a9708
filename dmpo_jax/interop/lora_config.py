"""The strength of a LoRA as files state it: peft's LoraConfig in a header or beside the weights."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from dmpo_jax.common import files, paths
from dmpo_jax.errors import InputError, short
from dmpo_jax.interop.lora_names import TEXT_PREFIX
from dmpo_jax.interop.lora_patterns import Patterns

# Entry of a safetensors header in which diffusers stores the fields of peft's LoraConfig, and the
# file in which peft does.
METADATA, PEFT_FILE = "lora_adapter_metadata", "adapter_config.json"

# Fields that matter to training alone, or to how peft finds layers: the entries of a file say which
# layers it adapts.
IDLE = {
  "auto_mapping",
  "base_model_name_or_path",
  "bias",
  "corda_config",
  "ensure_weight_tying",
  "eva_config",
  "exclude_modules",
  "fan_in_fan_out",
  "inference_mode",
  "layers_pattern",
  "layers_to_transform",
  "loftq_config",
  "lora_dropout",
  "lora_ga_config",
  "megatron_config",
  "megatron_core",
  "modules_to_save",
  "peft_version",
  "qalora_group_size",
  "revision",
  "runtime_config",
  "target_modules",
  "target_parameters",
  "task_type",
  "trainable_token_indices",
  "velora_config",
}
# Initialisations after which the base's weights are others; such a LoRA fits those alone.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraConfig:
  """The fields of one network's LoraConfig that set the strength.

  Args:
    fields: Fields by name; unknown ones may be null, false or empty.

  Raises:
    InputError: A field has a wrong type, or says that this is no plain LoRA.
  """

  def __init__(self, fields: Mapping[str, Any]):
    _check_method(fields)
    self._rank = fields.get("r")
    if self._rank is not None:
      _require(_number(self._rank) and self._rank == int(self._rank) >= 1, "r", self._rank)
    self.alpha = fields.get("lora_alpha")
    if self.alpha is not None:
      _require(_number(self.alpha), "lora_alpha", self.alpha)
    self._root = bool(fields.get("use_rslora"))
    self._ranks = _patterns(fields, "rank_pattern")
    self._alphas = _patterns(fields, "alpha_pattern")

  def alpha_of(self, layer: str, rank: int) -> float | None:
    """The alpha of a layer, for an update of alpha / rank down up; None if it is not stated.

    Args:
      layer: Dotted name.
      rank: Rank of the layer's factors.

    Raises:
      InputError: The config states another rank.
    """
    names = {layer, layer.removeprefix(TEXT_PREFIX)}
    stated = self._lookup(self._ranks, names, self._rank)
    if stated is not None and stated != rank:
      raise InputError(f"the header says rank {short(stated)}, the factors have {rank}")
    alpha = self._lookup(self._alphas, names, self.alpha)
    if alpha is None:
      return None
    return float(alpha) * (math.sqrt(rank) if self._root else 1)

  @staticmethod
  def _lookup(table: tuple[Patterns, Mapping[str, Any]], names: Iterable[str], default: Any) -> Any:
    patterns, values = table
    pattern = patterns.first(names)
    return default if pattern is None else values[pattern]


def read_configs(
  path: paths.Path, header: Mapping[str, str], *, peft: bool
) -> dict[str, LoraConfig]:
  """The configs of a LoRA file.

  Args:
    path: The file.
    header: Its header.
    peft: Whether the entries are spelled as in peft's own files, whose config lies beside them.

  Returns:
    Component -> config; "" stands for entries that name no component.

  Raises:
    InputError: A config is damaged or is that of another method; the message names the place.
  """
  where, fields = f"{path}: {METADATA} in its header", {}
  if METADATA in header:
    fields = files.parse_json(header[METADATA], where)
  elif peft and (path.parent / PEFT_FILE).is_file():
    where = str(path.parent / PEFT_FILE)
    fields = files.read_json(path.parent / PEFT_FILE)
  parts: dict[str, dict[str, Any]] = {}
  for key, value in fields.items():
    component, _, field = key.rpartition(".")
    parts.setdefault(component, {})[field] = value
  with files.located(where):
    return {component: LoraConfig(part) for component, part in parts.items()}


def peft_config(rank: int, layers: Iterable[str]) -> dict[str, Any]:
  """The fields of peft's LoraConfig for a LoRA whose strength is in its factors.

  Args:
    rank: Rank of all layers.
    layers: Dotted names.

  Returns:
    A JSON object. Names lack text_model., so that they match torch's modules with and without it.
  """
  return {
    "r": rank,
    "lora_alpha": rank,
    "target_modules": sorted(layer.removeprefix(TEXT_PREFIX) for layer in layers),
    "rank_pattern": {},
    "alpha_pattern": {},
  }


def header(fields: Mapping[str, Any]) -> str:
  """The text of the header's entry for fields by component."""
  return json.dumps(fields, indent=2, sort_keys=True)


def _check_method(fields: Mapping[str, Any]) -> None:
  kind = fields.get("peft_type") or "LORA"
  if kind != "LORA":
    raise InputError(f"peft_type is {short(kind)}; only plain LoRA is read")
  initial = str(fields.get("init_lora_weights")).lower()
  if initial.startswith(BASE_CHANGING):
    raise InputError(
      f"init_lora_weights is {short(initial)}, which changes the base's weights too; convert the "
      "LoRA with peft's path_initial_model_for_weight_conversion"
    )
  read = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type"}
  active = [
    f"{short(name)} is {short(value)}"
    for name, value in fields.items()
    if name not in IDLE | read | {"init_lora_weights"} and value not in (None, False, "", [], {})
  ]
  if active:
    raise InputError(f"{', '.join(active[:4])}; only plain LoRA is read")


def _patterns(fields: Mapping[str, Any], name: str) -> tuple[Patterns, Mapping[str, Any]]:
  values = fields.get(name) or {}
  _require(isinstance(values, dict), name, values, "an object of numbers by layer")
  for pattern, value in values.items():
    _require(_number(value), f"{name} of {short(pattern)}", value)
  with files.located(name):
    return Patterns(values), values


def _number(value: Any) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return abs(value) < 1e9  # NaN is not


def _require(valid: bool, name: str, value: Any, expected: str = "a number") -> None:
  if not valid:
    raise InputError(f"{name} is {short(value)}, expected {expected}")
