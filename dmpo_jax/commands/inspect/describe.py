"""Description of a source as JSON values."""

import collections
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmpo_jax.commands.inspect.sources import Component, Source
from dmpo_jax.common import files, paths
from dmpo_jax.interop import lora_config, lora_entries, lora_file, lora_names

# The most informative fields of all configs, in the order in which they are shown.
FIELDS = (
  "prediction_type",
  "beta_schedule",
  "beta_start",
  "beta_end",
  "num_train_timesteps",
  "timestep_spacing",
  "steps_offset",
  "rescale_betas_zero_snr",
  "set_alpha_to_one",
  "clip_sample",
  "use_karras_sigmas",
  "in_channels",
  "latent_channels",
  "block_out_channels",
  "layers_per_block",
  "cross_attention_dim",
  "attention_head_dim",
  "transformer_layers_per_block",
  "use_linear_projection",
  "addition_embed_type",
  "sample_size",
  "scaling_factor",
  "shift_factor",
  "force_upcast",
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "max_position_embeddings",
  "hidden_act",
  "projection_dim",
)


def describe(source: Source) -> dict[str, Any]:
  """Description of a source and its components.

  Args:
    source: Result of `open_source`.

  Returns:
    JSON values: path, kind, facts, components, and for a LoRA also lora.
  """
  lora = _lora(source)
  return {
    "path": source.path,
    "kind": "LoRA" if lora else source.kind,
    "facts": dict(source.facts),
    "components": {name: _component(c) for name, c in source.components.items()},
    **({"lora": lora} if lora else {}),
  }


def _component(component: Component) -> dict[str, Any]:
  dtypes: collections.Counter[str] = collections.Counter()
  for tensor in component.tensors.values():
    dtypes[str(tensor.dtype)] += math.prod(tensor.shape)
  return {
    "class": component.kind,
    "parameters": sum(dtypes.values()),
    "tensors": len(component.tensors),
    "dtypes": dict(dtypes.most_common()),
    "bytes": component.size,
    "variants": list(component.variants),
    "variant": component.variant,
    "config": {k: component.config[k] for k in FIELDS if component.config.get(k) is not None},
    "files": list(component.others),
    "notes": list(component.notes),
  }


def _lora(source: Source) -> dict[str, Any] | None:
  """Description of a LoRA file by component; None for any other source."""
  if source.kind != "weights":
    return None
  (component,) = source.components.values()
  parts: dict[str, dict[str, Any]] = {}
  forms = set()
  for name, tensor in component.tensors.items():
    entry = lora_entries.parse(name)
    if entry is None:
      continue
    network, layer = _split_name(entry.layer)
    part = parts.setdefault(network, {"layers": {}, "alphas": {}, "zero": 0})
    if entry.role == "alpha":
      part["alphas"][layer] = float(np.resize(np.asarray(tensor.read(None), np.float64), 1)[0])
    elif entry.role == "up" and len(tensor.shape) > 1:
      part["layers"][layer] = tensor.shape[1]
      part["zero"] += not np.any(tensor.read(None))
    if entry.form:
      forms.add(lora_entries.FORMS[entry.form])
  parts = {name: part for name, part in parts.items() if part["layers"]}
  if not parts:
    return None
  path = paths.parse(source.path)
  path = lora_file.locate(path) if path.exists() else path
  configs = lora_config.read_configs(
    path, source.metadata, peft=lora_file.is_peft(path, component.tensors)
  )
  with files.located(source.path):
    summaries = {
      name: _summary(part, configs.get(name, configs.get(""))) for name, part in parts.items()
    }
  return {"form": " and ".join(sorted(forms)), "components": summaries}


def _split_name(spelled: str) -> tuple[str, str]:
  """Component and layer of a layer's name in a file; a name may leave out the component."""
  for component, prefixes in lora_names.READ_PREFIXES.items():
    for prefix in prefixes:
      if spelled.startswith(f"{prefix}_"):
        return component, spelled.removeprefix(f"{prefix}_")
  component, _, layer = spelled.partition(".")
  if component in lora_names.COMPONENTS:
    return component, lora_entries.unwrapped(layer)
  return "not named", lora_entries.unwrapped(spelled)


def _last(layer: str) -> str:
  """Last part of a layer's name, with its number: to_q, to_out.0."""
  before, _, last = layer.rpartition(".")
  return f"{before.rpartition('.')[2]}.{last}" if last.isdigit() else last


def _summary(part: Mapping[str, Any], config: lora_config.LoraConfig | None) -> dict[str, Any]:
  ranks = part["layers"]
  stated = {layer: part["alphas"].get(layer) for layer in ranks}
  if config is not None:
    for layer, rank in ranks.items():
      alpha = config.alpha_of(layer, rank)
      stated[layer] = stated[layer] if alpha is None else alpha
  alphas = {ranks[layer] if alpha is None else alpha for layer, alpha in stated.items()}
  kinds = collections.Counter(_last(layer) for layer in ranks if "." in layer)
  return {
    "layers": len(ranks),
    "ranks": sorted(set(ranks.values())),
    "alphas": sorted(alphas),
    "alpha_source": "file" if any(a is not None for a in stated.values()) else "rank",
    "kinds": dict(kinds.most_common()),
    "layers_without_effect": part["zero"],
  }
