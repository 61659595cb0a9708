"""The config of UNet2DConditionModel: diffusers' fields and defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmpo_jax.models import config_fields

NAME = "UNet2DConditionModel"

DEFAULTS = {
  "in_channels": 4,
  "out_channels": 4,
  "center_input_sample": False,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
  "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
  "block_out_channels": (320, 640, 1280, 1280),
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "norm_eps": 1e-5,
  "cross_attention_dim": 1280,
  "transformer_layers_per_block": 1,
  "reverse_transformer_layers_per_block": None,
  "attention_head_dim": 8,
  "num_attention_heads": None,
  "use_linear_projection": False,
  "time_embedding_dim": None,
  "addition_embed_type": None,
  "addition_time_embed_dim": None,
  "projection_class_embeddings_input_dim": None,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "act_fn": "silu",
}

CONSTANTS = {
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "only_cross_attention": False,
  "downsample_padding": 1,
  "mid_block_scale_factor": 1,
  "dropout": 0.0,
  "encoder_hid_dim": None,
  "encoder_hid_dim_type": None,
  "dual_cross_attention": False,
  "class_embed_type": None,
  "num_class_embeds": None,
  "resnet_time_scale_shift": "default",
  "time_embedding_type": "positional",
  "time_embedding_act_fn": None,
  "timestep_post_act": None,
  "time_cond_proj_dim": None,
  "attention_type": "default",
  "class_embeddings_concat": False,
}

# upcast_attention: the softmax is always in float32. No supported block type reads the others; the
# last seven are the state of diffusers' EMAModel, which writes it into the network's config.
IGNORED = frozenset(
  {
    "sample_size",
    "upcast_attention",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "mid_block_only_cross_attention",
    "cross_attention_norm",
    "addition_embed_type_num_heads",
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
  }
)

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")

# SDXL's micro-conditioning: height and width of the original, top and left of the crop, height and
# width of the target.
TIME_IDS = 6


@dataclasses.dataclass(frozen=True)
class Level:
  """One resolution of the network.

  Attributes:
    width: Channels.
    layers: Residual layers on the way down; the way up has one more.
    heads: Attention heads.
    down: Transformer layers after each residual layer of the way down; empty without attention.
    up: Transformer layers after each residual layer of the way up; empty without attention.
  """

  width: int
  layers: int
  heads: int
  down: tuple[int, ...]
  up: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TextTime:
  """Widths of SDXL's additional conditioning, in channels.

  Attributes:
    text: Width of the pooled text embedding.
    sinusoids: Width of the embedding of each of the `TIME_IDS` numbers.
  """

  text: int
  sinusoids: int


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The fields that shape the network; those not listed here are named as in diffusers.

  Attributes:
    levels: Resolutions, from the finest to the coarsest.
    middle: Transformer layers of the middle block.
    text_time: SDXL's additional conditioning, or None.
  """

  in_channels: int
  out_channels: int
  center_input_sample: bool
  flip_sin_to_cos: bool
  freq_shift: float
  levels: tuple[Level, ...]
  middle: int
  norm_num_groups: int
  norm_eps: float
  cross_attention_dim: int
  use_linear_projection: bool
  time_embedding_dim: int
  text_time: TextTime | None
  conv_in_kernel: int
  conv_out_kernel: int


def _per_block(name: str, value: Any, blocks: int) -> tuple[Any, ...]:
  """One positive integer per block, from a list or from one integer for all blocks."""
  values = value if isinstance(value, tuple) else (value,) * blocks
  if len(values) != blocks:
    raise config_fields.unsupported(NAME, name, value, f"{blocks} entries, one per block")
  return tuple(config_fields.check_count(NAME, name, v) for v in values)


def _depths(name: str, value: Any, layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
  """Transformer layers for each attention of each block, from integers or nested lists."""
  values = value if isinstance(value, tuple) else (value,) * len(layers)
  if len(values) != len(layers):
    raise config_fields.unsupported(NAME, name, value, f"{len(layers)} entries, one per block")
  return tuple(_per_block(name, v, n) for v, n in zip(values, layers, strict=True))


def _check_blocks(values: Mapping[str, Any]) -> int:
  """The number of resolutions; raises InputError unless block types and widths agree on it."""
  widths = values["block_out_channels"]
  if not isinstance(widths, tuple) or not widths:
    raise config_fields.unsupported(NAME, "block_out_channels", widths, "a list of channel counts")
  for name, options in (("down_block_types", DOWN), ("up_block_types", UP)):
    kinds = values[name]
    if not isinstance(kinds, tuple) or len(kinds) != len(widths):
      expected = f"{len(widths)} names, one for each of block_out_channels"
      raise config_fields.unsupported(NAME, name, kinds, expected)
    for kind in kinds:
      config_fields.check_choice(NAME, name, kind, options)
  return len(widths)


def _text_time(kind: Any, sinusoids: Any, inputs: Any) -> TextTime | None:
  """SDXL's additional conditioning, from its three fields."""
  config_fields.check_choice(NAME, "addition_embed_type", kind, (None, "text_time"))
  names = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
  for name, value in zip(names, (sinusoids, inputs), strict=True):
    if kind is not None:
      config_fields.check_count(NAME, name, value)
    elif value is not None:
      expected = "null: only addition_embed_type = 'text_time' reads it"
      raise config_fields.unsupported(NAME, name, value, expected)
  if kind is None:
    return None
  text = inputs - TIME_IDS * sinusoids
  if text < 1:
    expected = (
      f"the width of the pooled text embedding plus {TIME_IDS} * addition_time_embed_dim = "
      f"{TIME_IDS * sinusoids}"
    )
    raise config_fields.unsupported(NAME, names[1], inputs, expected)
  return TextTime(text, sinusoids)


def _transformers(
  values: dict[str, Any], layers: tuple[int, ...]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], int]:
  """Transformer layers (down, up, middle); down and up from the finest level to the coarsest.

  A level without attention has none, whatever the fields say.
  """
  depths = values.pop("transformer_layers_per_block")
  up = values.pop("reverse_transformer_layers_per_block")
  nested = isinstance(depths, tuple) and any(isinstance(d, tuple) for d in depths)
  if up is None and nested:
    expected = (
      "a list of lists only together with reverse_transformer_layers_per_block (for the up blocks)"
    )
    raise config_fields.unsupported(NAME, "transformer_layers_per_block", depths, expected)
  if up is None:
    up = depths[::-1] if isinstance(depths, tuple) else depths
  down = _depths("transformer_layers_per_block", depths, layers)
  up = _depths("reverse_transformer_layers_per_block", up, tuple(n + 1 for n in layers[::-1]))
  middle = down[-1][0]
  down_kinds, up_kinds = values.pop("down_block_types"), values.pop("up_block_types")
  down = tuple(d if kind == DOWN[0] else () for d, kind in zip(down, down_kinds, strict=True))
  up = tuple(d if kind == UP[0] else () for d, kind in zip(up, up_kinds, strict=True))
  return down, up[::-1], middle


def read(config: Mapping[str, Any]) -> UNetConfig:
  """Reads diffusers' config.json of a UNet2DConditionModel.

  Args:
    config: Its fields; absent ones have diffusers' defaults.

  Returns:
    A `UNetConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: the constructor of diffusers' UNet2DConditionModel (0.42), in which `attention_head_dim`
    is the number of heads.
  """
  values = config_fields.read(NAME, config, defaults=DEFAULTS, constants=CONSTANTS, ignored=IGNORED)
  blocks = _check_blocks(values)
  widths = _per_block("block_out_channels", values.pop("block_out_channels"), blocks)

  config_fields.check_choice(NAME, "act_fn", values.pop("act_fn"), ("silu", "swish"))
  for name in ("center_input_sample", "flip_sin_to_cos", "use_linear_projection"):
    config_fields.check_flag(NAME, name, values[name])
  for name in ("in_channels", "out_channels", "norm_num_groups"):
    config_fields.check_count(NAME, name, values[name])
  for name in ("freq_shift", "norm_eps"):
    config_fields.check_number(NAME, name, values[name])
  for name in ("conv_in_kernel", "conv_out_kernel"):
    if config_fields.check_count(NAME, name, values[name]) % 2 == 0:
      raise config_fields.unsupported(NAME, name, values[name], "an odd size")

  groups = values["norm_num_groups"]
  for width in widths:
    if width % groups:
      expected = f"a divisor of every width in block_out_channels = {widths}"
      raise config_fields.unsupported(NAME, "norm_num_groups", groups, expected)

  layers = _per_block("layers_per_block", values.pop("layers_per_block"), blocks)
  down, up, middle = _transformers(values, layers)

  num_heads = values.pop("num_attention_heads")
  if num_heads is not None:
    expected = "null: diffusers refuses it and reads the number of heads from attention_head_dim"
    raise config_fields.unsupported(NAME, "num_attention_heads", num_heads, expected)
  heads = _per_block("attention_head_dim", values.pop("attention_head_dim"), blocks)
  levels = tuple(map(Level, widths, layers, heads, down, up))
  for level in levels:
    # The coarsest level always has attention, in the middle block.
    if (level.down or level.up or level is levels[-1]) and level.width % level.heads:
      expected = f"a divisor of the block's width {level.width} (it is the number of heads)"
      raise config_fields.unsupported(NAME, "attention_head_dim", level.heads, expected)

  context = values.pop("cross_attention_dim")
  if len(set(_per_block("cross_attention_dim", context, blocks))) > 1:
    expected = "one width: all blocks read the same text embedding"
    raise config_fields.unsupported(NAME, "cross_attention_dim", context, expected)

  time = values.pop("time_embedding_dim")
  if time is not None:
    config_fields.check_count(NAME, "time_embedding_dim", time)
  text_time = _text_time(
    values.pop("addition_embed_type"),
    values.pop("addition_time_embed_dim"),
    values.pop("projection_class_embeddings_input_dim"),
  )
  return UNetConfig(
    **values,
    levels=levels,
    middle=middle,
    cross_attention_dim=context[0] if isinstance(context, tuple) else context,
    time_embedding_dim=4 * widths[0] if time is None else time,
    text_time=text_time,
  )
