"""Description of a source as JSON values."""

import collections
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmpo_jax.commands.inspect.sources import Component, Source
from dmpo_jax.interop import lora as lora_files
from dmpo_jax.interop import lora_names

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
  components: dict[str, dict[str, Any]] = {}
  spellings = set()
  for entry, tensor in component.tensors.items():
    match = lora_files.ENTRY.fullmatch(entry)
    if match is None:
      continue
    name, layer, spelling = _split_name(match["layer"])
    part = components.setdefault(name, {"layers": {}, "alphas": {}, "zero": 0})
    if match["alpha"]:
      part["alphas"][layer] = float(np.asarray(tensor.read(None)).reshape(-1)[0])
    elif match["up"]:
      part["layers"][layer] = tensor.shape[1]
      part["zero"] += not np.any(tensor.read(None))
    spellings.add(spelling if spelling == "kohya" or not match["down"] else _form(match["down"]))
  components = {name: part for name, part in components.items() if part["layers"]}
  if not components:
    return None
  header = json.loads(source.metadata.get(lora_files.METADATA, "{}"))
  return {
    "form": " and ".join(sorted(spellings - {"dotted"})),
    "components": {name: _summary(name, part, header) for name, part in components.items()},
  }


def _split_name(spelled: str) -> tuple[str, str, str]:
  """Component, layer and spelling of a layer's name in a file."""
  for prefix, component in (
    *((v, k) for k, v in lora_names.KOHYA_XL.items()),
    ("lora_te", "text_encoder"),
  ):
    if spelled.startswith(f"{prefix}_"):
      return component, spelled.removeprefix(f"{prefix}_"), "kohya"
  component, _, layer = spelled.partition(".")
  return component, layer, "dotted"


def _form(factor: str) -> str:
  return "peft" if factor == "lora_A" else "diffusers' scripts"


def _last(layer: str) -> str:
  """Last part of a layer's name, with its number: to_q, to_out.0."""
  before, _, last = layer.rpartition(".")
  return f"{before.rpartition('.')[2]}.{last}" if last.isdigit() else last


def _summary(name: str, part: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
  ranks = part["layers"]
  alphas = {layer: part["alphas"].get(layer, rank) for layer, rank in ranks.items()}
  prefix = f"{name}."
  config = {k.removeprefix(prefix): v for k, v in header.items() if k.startswith(prefix)}
  if "lora_alpha" in config:
    patterns = config.get("alpha_pattern") or {}
    for layer in ranks:
      pattern = lora_names.peft_pattern(patterns, layer)
      alphas[layer] = config["lora_alpha"] if pattern is None else patterns[pattern]
  kinds = collections.Counter(_last(layer) for layer in ranks if "." in layer)
  return {
    "layers": len(ranks),
    "ranks": sorted(set(ranks.values())),
    "alphas": sorted(set(alphas.values())),
    "alpha_source": "file" if part["alphas"] or "lora_alpha" in config else "rank",
    "kinds": dict(kinds.most_common()),
    "layers_without_effect": part["zero"],
  }
