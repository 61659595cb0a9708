"""The config of SD3Transformer2DModel: diffusers' fields and defaults."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dmpo_jax.errors import InputError, short
from dmpo_jax.models import config_fields
from dmpo_jax.models.mmdit import positions

NAME = "SD3Transformer2DModel"

DEFAULTS = {
  "sample_size": 128,
  "patch_size": 2,
  "in_channels": 16,
  "num_layers": 18,
  "attention_head_dim": 64,
  "num_attention_heads": 18,
  "joint_attention_dim": 4096,
  "caption_projection_dim": 1152,
  "pooled_projection_dim": 2048,
  "out_channels": 16,
  "pos_embed_max_size": 96,
  "dual_attention_layers": (),
  "qk_norm": None,
}

IGNORED = frozenset({"gradient_checkpointing"})

# Limits of what is built.
LIMITS = {"num_layers": config_fields.MAX_LAYERS, "pos_embed_max_size": 4096, "patch_size": 64}

# Field of this project for a table of positions other than diffusers' own, see `positions`.
POSITIONS = "_positions"


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
  """The fields that shape the network, named as in diffusers where they are listed there.

  Attributes:
    sample_size: Height and width in latents of the images that the network was trained at; the
      scale of the positions depends on it.
    heads: Attention heads.
    width: Channels of both streams, heads times `attention_head_dim`.
    dual_attention_layers: Layers with a second attention, over the image alone.
    qk_norm: Whether queries and keys are normalised.
    positions: The positions of the patches along a side.
  """

  sample_size: int
  patch_size: int
  in_channels: int
  out_channels: int
  num_layers: int
  heads: int
  width: int
  joint_attention_dim: int
  pooled_projection_dim: int
  pos_embed_max_size: int
  dual_attention_layers: frozenset[int]
  qk_norm: bool
  positions: positions.Positions


def read(config: Mapping[str, Any]) -> MMDiTConfig:
  """Reads diffusers' config.json of an SD3Transformer2DModel.

  Args:
    config: Its fields; absent ones have diffusers' defaults.

  Returns:
    An `MMDiTConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: the constructor of diffusers' SD3Transformer2DModel (0.42).
  """
  values = config_fields.read(NAME, config, defaults=DEFAULTS, constants={}, ignored=IGNORED)
  if values["out_channels"] is None:
    values["out_channels"] = values["in_channels"]
  dual, norm = values.pop("dual_attention_layers"), values.pop("qk_norm")
  for name, value in values.items():
    config_fields.check_count(NAME, name, value, most=LIMITS.get(name, config_fields.MAX_SIZE))
  config_fields.check_choice(NAME, "qk_norm", norm, (None, "rms_norm"))
  if not isinstance(dual, tuple) or not all(type(layer) is int for layer in dual):
    expected = "a list of numbers of layers, from 0"
    raise config_fields.unsupported(NAME, "dual_attention_layers", dual, expected)
  heads, channels = values.pop("num_attention_heads"), values.pop("attention_head_dim")
  width, caption = heads * channels, values.pop("caption_projection_dim")
  if width % 4:
    expected = f"a width num_attention_heads * attention_head_dim divisible by 4, here {width}"
    raise config_fields.unsupported(NAME, "attention_head_dim", channels, expected)
  if caption != width:
    expected = f"num_attention_heads * attention_head_dim = {width}, the width of both streams"
    raise config_fields.unsupported(NAME, "caption_projection_dim", caption, expected)
  patch, size = values["patch_size"], values["sample_size"]
  if size < patch:
    raise config_fields.unsupported(NAME, "sample_size", size, f"at least patch_size = {patch}")
  published = positions.published(size, patch, values["pos_embed_max_size"])
  return MMDiTConfig(
    **values,
    heads=heads,
    width=width,
    dual_attention_layers=frozenset(dual) & frozenset(range(values["num_layers"])),
    qk_norm=norm is not None,
    positions=_positions(config[POSITIONS]) if POSITIONS in config else published,
  )


def _positions(value: Any) -> positions.Positions:
  """The positions of the field `POSITIONS`."""
  fields = set(positions.Positions._fields)
  try:
    if set(value) != fields:
      raise ValueError
    result = positions.Positions(float(value["first"]), float(value["step"]), str(value["dtype"]))
    if result.dtype not in positions.TOLERANCES or not math.isfinite(result.first + result.step):
      raise ValueError
  except (TypeError, ValueError) as error:
    raise InputError(
      f"{NAME} config: {POSITIONS} = {short(value)} is not supported, expected numbers first and "
      "step, and a dtype, as this program writes them; remove the field to use diffusers' positions"
    ) from error
  return result
