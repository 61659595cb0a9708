"""The config of UNet2DConditionModel: diffusers' fields and defaults."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dmpo_jax.errors import InputError
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
  "mid_block_type": "UNetMidBlock2DCrossAttn",
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
  "only_cross_attention": False,
  "downsample_padding": 1,
  "mid_block_scale_factor": 1,
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
    "gradient_checkpointing",
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
MIDDLE = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
UP = ("CrossAttnUpBlock2D", "UpBlock2D")

# Limits of what is built: of a level's layers, of the levels, and of all layers together.
MAX_PER_LEVEL, MAX_LEVELS, MAX_TOTAL = 64, 12, 512

# SDXL's micro-conditioning: height and width of the original, top and left of the crop, height and
# width of the target.
TIME_IDS = 6


@dataclasses.dataclass(frozen=True)
class Level:
  """One resolution of the network.

  Attributes:
    width: Channels.
    layers: Residual layers on the way down; the way up has one more.
    heads: Attention heads; 1 without attention.
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
    middle: Transformer layers of the middle block; 0 for a middle block that is a residual layer
      alone, and None for none.
    text_time: SDXL's additional conditioning, or None.
  """

  in_channels: int
  out_channels: int
  center_input_sample: bool
  flip_sin_to_cos: bool
  freq_shift: float
  levels: tuple[Level, ...]
  middle: int | None
  norm_num_groups: int
  norm_eps: float
  cross_attention_dim: int
  use_linear_projection: bool
  time_embedding_dim: int
  text_time: TextTime | None
  conv_in_kernel: int
  conv_out_kernel: int


def _entries(name: str, value: Any, blocks: int) -> tuple[Any, ...]:
  """One value per block, from a list or from one value for all blocks."""
  values = value if isinstance(value, tuple) else (value,) * blocks
  if len(values) != blocks:
    raise config_fields.unsupported(NAME, name, value, f"{blocks} entries, one per block")
  return values


def _per_block(
  name: str, value: Any, blocks: int, *, most: int = config_fields.MAX_SIZE
) -> tuple[int, ...]:
  """One positive integer per block, from a list or from one integer for all blocks."""
  return tuple(
    config_fields.check_count(NAME, name, v, most=most) for v in _entries(name, value, blocks)
  )


def _with_attention(name: str, value: Any, used: Sequence[bool]) -> tuple[int, ...]:
  """One positive integer per block; 1 for blocks without attention, whatever the field says."""
  values = _entries(name, value, len(used))
  return tuple(
    config_fields.check_count(NAME, name, v) if attends else 1
    for v, attends in zip(values, used, strict=True)
  )


def _depths(
  name: str, value: Any, layers: Sequence[int], used: Sequence[bool]
) -> tuple[tuple[int, ...], ...]:
  """Transformer layers for each attention of each block, from integers or nested lists.

  A block without attention has none, whatever the field says.
  """
  values = _entries(name, value, len(layers))
  return tuple(
    _per_block(name, v, n, most=MAX_PER_LEVEL) if attends else ()
    for v, n, attends in zip(values, layers, used, strict=True)
  )


def _check_blocks(values: Mapping[str, Any]) -> int:
  """The number of resolutions; raises InputError unless block types and widths agree on it."""
  widths = values["block_out_channels"]
  if not isinstance(widths, tuple) or not widths:
    raise config_fields.unsupported(NAME, "block_out_channels", widths, "a list of channel counts")
  if len(widths) > MAX_LEVELS:
    expected = f"at most {MAX_LEVELS} resolutions"
    raise config_fields.unsupported(NAME, "block_out_channels", widths, expected)
  for name, options in (("down_block_types", DOWN), ("up_block_types", UP)):
    kinds = values[name]
    if not isinstance(kinds, tuple) or len(kinds) != len(widths):
      expected = f"{len(widths)} names, one for each of block_out_channels"
      raise config_fields.unsupported(NAME, name, kinds, expected)
    for kind in kinds:
      config_fields.check_choice(NAME, name, kind, options)
  return len(widths)


def _text_time(kind: Any, sinusoids: Any, inputs: Any) -> TextTime | None:
  """SDXL's additional conditioning, from its three fields; without it the last two are not read."""
  config_fields.check_choice(NAME, "addition_embed_type", kind, (None, "text_time"))
  if kind is None:
    return None
  names = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
  for name, value in zip(names, (sinusoids, inputs), strict=True):
    config_fields.check_count(NAME, name, value)
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
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], int | None]:
  """Transformer layers (down, up, middle); down and up from the finest level to the coarsest."""
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
  down_attends = [kind == DOWN[0] for kind in values.pop("down_block_types")]
  up_attends = [kind == UP[0] for kind in values.pop("up_block_types")]
  middle_kind = values.pop("mid_block_type")
  config_fields.check_choice(NAME, "mid_block_type", middle_kind, MIDDLE)
  name = "transformer_layers_per_block"
  down = _depths(name, depths, layers, down_attends)
  up_layers = tuple(n + 1 for n in layers[::-1])
  up = _depths("reverse_transformer_layers_per_block", up, up_layers, up_attends)
  middle = None if middle_kind is None else 0
  if middle_kind == MIDDLE[0]:
    last = _entries(name, depths, len(layers))[-1]
    last = last[0] if isinstance(last, tuple) and last else last
    middle = config_fields.check_count(NAME, name, last, most=MAX_PER_LEVEL)
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
  values = config_fields.read(
    NAME,
    config,
    defaults=DEFAULTS,
    constants=CONSTANTS,
    ignored=IGNORED,
    dropouts=("dropout",),
  )
  blocks = _check_blocks(values)
  widths = _per_block("block_out_channels", values.pop("block_out_channels"), blocks)

  config_fields.check_choice(NAME, "act_fn", values.pop("act_fn"), ("silu", "swish"))
  for name in ("center_input_sample", "flip_sin_to_cos", "use_linear_projection"):
    values[name] = config_fields.check_flag(NAME, name, values[name])
  for name in ("in_channels", "out_channels", "norm_num_groups"):
    config_fields.check_count(NAME, name, values[name])
  config_fields.check_number(NAME, "norm_eps", values["norm_eps"], most=1)
  for name in ("conv_in_kernel", "conv_out_kernel"):
    if config_fields.check_count(NAME, name, values[name]) % 2 == 0:
      raise config_fields.unsupported(NAME, name, values[name], "an odd size")

  groups = values["norm_num_groups"]
  for width in widths:
    if width % groups:
      expected = f"a divisor of every width in block_out_channels = {widths}"
      raise config_fields.unsupported(NAME, "norm_num_groups", groups, expected)

  layers = _per_block(
    "layers_per_block", values.pop("layers_per_block"), blocks, most=MAX_PER_LEVEL
  )
  down, up, middle = _transformers(values, layers)

  num_heads = values.pop("num_attention_heads")
  if num_heads is not None:
    expected = "null: diffusers refuses it and reads the number of heads from attention_head_dim"
    raise config_fields.unsupported(NAME, "num_attention_heads", num_heads, expected)
  attends = [bool(d or u) for d, u in zip(down, up, strict=True)]
  attends[-1] |= bool(middle)
  heads = _with_attention("attention_head_dim", values.pop("attention_head_dim"), attends)
  levels = tuple(map(Level, widths, layers, heads, down, up))
  total = sum(2 * n + 1 for n in layers) + sum(map(sum, (*down, *up)))
  if total > MAX_TOTAL:
    raise InputError(
      f"{NAME} config: it describes {total} residual and transformer layers, expected at most "
      f"{MAX_TOTAL}"
    )
  for level in levels:
    if level.width % level.heads:
      expected = f"a divisor of the block's width {level.width} (it is the number of heads)"
      raise config_fields.unsupported(NAME, "attention_head_dim", level.heads, expected)

  context = values.pop("cross_attention_dim")
  entries = _with_attention("cross_attention_dim", context, attends)
  contexts = {width for width, read in zip(entries, attends, strict=True) if read}
  if len(contexts) > 1:
    expected = "one width: all blocks read the same text embedding"
    raise config_fields.unsupported(NAME, "cross_attention_dim", context, expected)
  if not contexts:
    contexts.add(config_fields.check_count(NAME, "cross_attention_dim", context))

  time = values.pop("time_embedding_dim")
  if time is not None:
    config_fields.check_count(NAME, "time_embedding_dim", time)
  text_time = _text_time(
    values.pop("addition_embed_type"),
    values.pop("addition_time_embed_dim"),
    values.pop("projection_class_embeddings_input_dim"),
  )
  shift, waves = values["freq_shift"], (widths[0], *([text_time.sinusoids] if text_time else []))
  config_fields.check_number(NAME, "freq_shift", shift)
  if shift >= min(waves) // 2:
    expected = f"less than {min(waves) // 2}, half of the timestep's sines and cosines"
    raise config_fields.unsupported(NAME, "freq_shift", shift, expected)
  return UNetConfig(
    **values,
    levels=levels,
    middle=middle,
    cross_attention_dim=contexts.pop(),
    time_embedding_dim=4 * widths[0] if time is None else time,
    text_time=text_time,
  )
