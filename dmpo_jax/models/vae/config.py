"""The config of AutoencoderKL: diffusers' fields and defaults."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dmpo_jax.models import config_fields

NAME = "AutoencoderKL"

DEFAULTS = {
  "in_channels": 3,
  "out_channels": 3,
  "down_block_types": ("DownEncoderBlock2D",),
  "up_block_types": ("UpDecoderBlock2D",),
  "block_out_channels": (64,),
  "layers_per_block": 1,
  "act_fn": "silu",
  "latent_channels": 4,
  "norm_num_groups": 32,
  "scaling_factor": 0.18215,
  "shift_factor": None,
  "force_upcast": True,
  "use_quant_conv": True,
  "use_post_quant_conv": True,
  "mid_block_add_attention": True,
}

CONSTANTS = {"latents_mean": None, "latents_std": None}

# diffusers reads the first for tiling alone, which is not supported.
IGNORED = frozenset({"sample_size", "gradient_checkpointing"})

# Limits of what is built.
MAX_PER_LEVEL, MAX_LEVELS = 64, 12


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """The fields that shape the network; `block_out_channels` starts at the finest resolution.

  With `force_upcast` the activations exceed float16: for dtype float16 the network computes in
  float32 and casts the result.
  """

  in_channels: int
  out_channels: int
  block_out_channels: tuple[int, ...]
  layers_per_block: int
  latent_channels: int
  norm_num_groups: int
  scaling_factor: float
  shift_factor: float
  force_upcast: bool
  use_quant_conv: bool
  use_post_quant_conv: bool
  mid_block_add_attention: bool

  @property
  def downscale(self) -> int:
    """Pixels per latent along height and width, 2**(levels - 1)."""
    return 2 ** (len(self.block_out_channels) - 1)


def read(config: Mapping[str, Any]) -> VAEConfig:
  """Reads diffusers' config.json of an AutoencoderKL.

  Args:
    config: Its fields; absent ones have diffusers' defaults.

  Returns:
    A `VAEConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: the constructor of diffusers' AutoencoderKL (0.42).
  """
  values = config_fields.read(NAME, config, defaults=DEFAULTS, constants=CONSTANTS, ignored=IGNORED)
  widths = values["block_out_channels"]
  if not isinstance(widths, tuple) or not widths:
    raise config_fields.unsupported(NAME, "block_out_channels", widths, "a list of channel counts")
  if len(widths) > MAX_LEVELS:
    expected = f"at most {MAX_LEVELS} resolutions"
    raise config_fields.unsupported(NAME, "block_out_channels", widths, expected)
  for width in widths:
    config_fields.check_count(NAME, "block_out_channels", width)
  for name, kind in (
    ("down_block_types", "DownEncoderBlock2D"),
    ("up_block_types", "UpDecoderBlock2D"),
  ):
    kinds = values.pop(name)
    if kinds != (kind,) * len(widths):
      expected = f"{len(widths)} times {kind!r}, once for each of block_out_channels"
      raise config_fields.unsupported(NAME, name, kinds, expected)

  config_fields.check_choice(NAME, "act_fn", values.pop("act_fn"), ("silu", "swish"))
  for name in (
    "in_channels",
    "out_channels",
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
  ):
    most = MAX_PER_LEVEL if name == "layers_per_block" else config_fields.MAX_SIZE
    config_fields.check_count(NAME, name, values[name], most=most)
  groups = values["norm_num_groups"]
  if any(width % groups for width in widths):
    expected = f"a divisor of every width in block_out_channels = {widths}"
    raise config_fields.unsupported(NAME, "norm_num_groups", groups, expected)

  for name in ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
    values[name] = config_fields.check_flag(NAME, name, values[name])
  scale, shift = values["scaling_factor"], values.pop("shift_factor")
  if not _is_number(scale) or scale == 0:
    raise config_fields.unsupported(NAME, "scaling_factor", scale, "a number other than 0")
  if shift is not None and not _is_number(shift):
    raise config_fields.unsupported(NAME, "shift_factor", shift, "a number or null")
  return VAEConfig(**values, shift_factor=shift or 0.0)


def _is_number(value: object) -> bool:
  """Whether a field is a finite number and no truth value."""
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and -math.inf < value < math.inf and abs(value) < 1e9
