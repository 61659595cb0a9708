"""CLIP in open_clip's names and layouts, as transformers' CLIPModel.

Layouts differ in three places: query, key and value of a layer are one matrix, text_projection and
visual.proj are matrices `[D, P]` that a row is multiplied by, and positions are bare arrays.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmpo_jax.errors import InputError, short
from dmpo_jax.interop.read_weights import Entry

CONFIG = "open_clip_config.json"
PATCHES = "visual.conv1.weight"
# Channels of a head in the image encoder by its width, where no config states them. They are those
# of ViT-B, ViT-L, ViT-H, ViT-g and ViT-bigG.
HEAD_WIDTHS = {768: 64, 1024: 64, 1280: 80, 1408: 88, 1664: 104}
TEXT_HEAD_WIDTH = 64
ACTIVATIONS = ("gelu", "quick_gelu")

SINGLE = {
  "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
  "positional_embedding": "text_model.embeddings.position_embedding.weight",
  "ln_final.weight": "text_model.final_layer_norm.weight",
  "ln_final.bias": "text_model.final_layer_norm.bias",
  "logit_scale": "logit_scale",
  "visual.class_embedding": "vision_model.embeddings.class_embedding",
  "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
  PATCHES: "vision_model.embeddings.patch_embedding.weight",
  "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
  "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
  "visual.ln_post.weight": "vision_model.post_layernorm.weight",
  "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {
  "text_projection": "text_projection.weight",
  "visual.proj": "visual_projection.weight",
}
IN_LAYERS = {
  "ln_1": "layer_norm1",
  "ln_2": "layer_norm2",
  "attn.out_proj": "self_attn.out_proj",
  "mlp.c_fc": "mlp.fc1",
  "mlp.c_proj": "mlp.fc2",
}
FUSED = ("q_proj", "k_proj", "v_proj")
LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


@dataclasses.dataclass(frozen=True)
class _Rows:
  """A third of the rows of a tensor."""

  entry: Entry
  part: int

  @property
  def shape(self) -> tuple[int, ...]:
    return (self.entry.shape[0] // 3, *self.entry.shape[1:])

  @property
  def dtype(self) -> str:
    return self.entry.dtype

  def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
    count = self.shape[0]
    start, stop, _ = (slice(None) if index is None else index[0]).indices(count)
    rest = (slice(None),) * (len(self.shape) - 1) if index is None else index[1:]
    rows = slice(self.part * count + start, self.part * count + stop)
    return self.entry.read((rows, *rest))


@dataclasses.dataclass(frozen=True)
class _Transposed:
  """The transpose of a matrix."""

  entry: Entry

  @property
  def shape(self) -> tuple[int, ...]:
    return self.entry.shape[::-1]

  @property
  def dtype(self) -> str:
    return self.entry.dtype

  def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
    return self.entry.read(None if index is None else index[::-1]).T


def is_open_clip(names: Mapping[str, Any]) -> bool:
  """Whether tensors have open_clip's names."""
  return PATCHES in names


def convert(
  entries: Mapping[str, Entry],
  *,
  stated: Mapping[str, Any] | None = None,
  activation: str | None = None,
) -> tuple[dict[str, Any], dict[str, Entry]]:
  """A CLIPModel's config and tensors from those of open_clip.

  Args:
    entries: Tensors by open_clip's names; those of the text encoder may begin with `text.`.
    stated: Content of open_clip_config.json; None: sizes follow from the shapes, and the channels
      of a head from the width (`HEAD_WIDTHS`).
    activation: "gelu" or "quick_gelu", which no shape tells; None: as the config states.

  Returns:
    config: The fields of transformers' config.json.
    entries: Tensors by transformers' names.

  Raises:
    InputError: Tensors are missing, or the heads or the activation are not known.

  Source: open_clip's CLIP, VisionTransformer and TextTransformer (3.3); transformers' script that
    converts CLIP.
  """
  entries = {n.removeprefix("text."): e for n, e in entries.items()}
  required = (*SINGLE, *TRANSPOSED)
  if missing := [name for name in required if name not in entries]:
    raise InputError(f"no CLIP of open_clip: there is no {', '.join(missing)}")
  renamed: dict[str, Entry] = {}
  for name, entry in entries.items():
    if name in SINGLE:
      renamed[SINGLE[name]] = entry
    elif name in TRANSPOSED:
      renamed[TRANSPOSED[name]] = _Transposed(entry)
    elif match := LAYER.fullmatch(name):
      renamed |= _in_layer(*match.groups(), entry)
    elif name != "attn_mask":  # the causal mask, which older files hold
      renamed[name] = entry
  return _config(entries, stated, activation), renamed


def _in_layer(visual: str | None, number: str, name: str, entry: Entry) -> dict[str, Entry]:
  """The tensors of a layer that one of open_clip's is or holds."""
  prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}."
  if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
    leaf = name.rpartition("_")[2]
    return {f"{prefix}self_attn.{p}.{leaf}": _Rows(entry, i) for i, p in enumerate(FUSED)}
  layer, _, leaf = name.rpartition(".")
  return {f"{prefix}{IN_LAYERS.get(layer, layer)}.{leaf}": entry}


def _config(
  entries: Mapping[str, Entry], stated: Mapping[str, Any] | None, activation: str | None
) -> dict[str, Any]:
  """The config of a CLIPModel of these tensors."""
  model = _section(stated or {}, "model_cfg")
  vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
  kernel, width_text = entries[PATCHES].shape, entries["token_embedding.weight"].shape[-1]
  if len(kernel) != 4 or kernel[2] != kernel[3] or kernel[1] != 3:
    raise InputError(f"{PATCHES} is {list(kernel)}, expected [D, 3, P, P]")
  width = kernel[0]
  if activation is None:
    if stated is None:
      raise InputError(
        "the file of this CLIP does not tell its activation; state activation: quick_gelu for "
        "weights of OpenAI and others that were trained with it, gelu for those of LAION"
      )
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
  if activation not in ACTIVATIONS:
    raise InputError(f"activation is {short(activation)}; expected {' or '.join(ACTIVATIONS)}")
  head_width = vision.get("head_width", 64) if stated else HEAD_WIDTHS.get(width)
  if not isinstance(head_width, int) or head_width < 1:
    raise InputError(
      f"an image encoder of the width {width} is not known; give the folder with its {CONFIG}"
    )
  positions = entries["visual.positional_embedding"].shape[0] - 1
  heads = text.get("heads", max(width_text // TEXT_HEAD_WIDTH, 1))
  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": entries["visual.proj"].shape[-1],
    "text_config": {
      "vocab_size": entries["token_embedding.weight"].shape[0],
      "max_position_embeddings": entries["positional_embedding"].shape[0],
      "eos_token_id": entries["token_embedding.weight"].shape[0] - 1,
      "num_attention_heads": heads,
      **_layers(entries, "", width_text, activation),
    },
    "vision_config": {
      "patch_size": kernel[2],
      "image_size": vision.get("image_size", math.isqrt(positions) * kernel[2]),
      "num_attention_heads": width // head_width,
      **_layers(entries, "visual.", width, activation),
    },
  }


def _layers(
  entries: Mapping[str, Entry], visual: str, width: int, activation: str
) -> dict[str, Any]:
  """Number and sizes of the layers of one encoder."""
  prefix = f"{visual}transformer.resblocks."
  numbers = {int(m[2]) for n in entries if (m := LAYER.fullmatch(n)) and (m[1] or "") == visual}
  first = f"{prefix}0.mlp.c_fc.weight"
  if numbers != set(range(len(numbers))) or first not in entries:
    raise InputError(f"the layers of {prefix} are not numbered from 0, or have no mlp.c_fc")
  return {
    "hidden_size": width,
    "intermediate_size": entries[first].shape[0],
    "num_hidden_layers": len(numbers),
    "hidden_act": activation,
    "layer_norm_eps": 1e-5,
  }


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  section = config.get(name, {})
  if not isinstance(section, Mapping):
    raise InputError(f"{CONFIG}: {name} is {short(section)}, expected an object")
  return section
