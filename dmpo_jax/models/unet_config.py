"""The config of UNet2DConditionModel: diffusers' fields and defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmpo_jax.models import fields

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
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "act_fn": "silu",
}

FIXED = {
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "only_cross_attention": False,
  "downsample_padding": 1,
  "mid_block_scale_factor": 1,
  "dropout": 0.0,
  "encoder_hid_dim": None,
  "encoder_hid_dim_type": None,
  "dual_cross_attention": False,
  "class_embed_type": None,
  "addition_embed_type": None,
  "addition_time_embed_dim": None,
  "num_class_embeds": None,
  "resnet_time_scale_shift": "default",
  "time_embedding_type": "positional",
  "time_embedding_act_fn": None,
  "timestep_post_act": None,
  "time_cond_proj_dim": None,
  "projection_class_embeddings_input_dim": None,
  "attention_type": "default",
  "class_embeddings_concat": False,
}

# Either the softmax is in float32 anyway, or no block type that is offered reads the field.
IDLE = frozenset(
  {
    "sample_size",
    "upcast_attention",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "mid_block_only_cross_attention",
    "cross_attention_norm",
    "addition_embed_type_num_heads",
  }
)

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The fields that shape the network, one entry per resolution where diffusers allows both.

  `heads`, `cross_attention_dim`, `layers_per_block` and `transformer_depths` are ordered from the
  finest resolution to the coarsest; `up_transformer_depths` follows the way up.
  """

  in_channels: int
  out_channels: int
  center_input_sample: bool
  flip_sin_to_cos: bool
  freq_shift: float
  down_block_types: tuple[str, ...]
  up_block_types: tuple[str, ...]
  block_out_channels: tuple[int, ...]
  layers_per_block: tuple[int, ...]
  norm_num_groups: int
  norm_eps: float
  cross_attention_dim: tuple[int, ...]
  heads: tuple[int, ...]
  transformer_depths: tuple[tuple[int, ...], ...]
  up_transformer_depths: tuple[tuple[int, ...], ...]
  use_linear_projection: bool
  time_embedding_dim: int
  conv_in_kernel: int
  conv_out_kernel: int


def _per_block(name: str, value: Any, blocks: int) -> tuple[Any, ...]:
  """One positive integer per block, from one for all or a list."""
  values = value if isinstance(value, tuple) else (value,) * blocks
  if len(values) != blocks:
    raise fields.unsupported(NAME, name, value, f"{blocks} entries, one per block")
  return tuple(fields.check_count(NAME, name, v) for v in values)


def _depths(name: str, value: Any, layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
  """Transformer layers for each attention of each block; a block may name them one by one."""
  values = value if isinstance(value, tuple) else (value,) * len(layers)
  if len(values) != len(layers):
    raise fields.unsupported(NAME, name, value, f"{len(layers)} entries, one per block")
  return tuple(_per_block(name, v, n) for v, n in zip(values, layers, strict=True))


def _check_blocks(values: Mapping[str, Any]) -> int:
  """The number of resolutions, on which the block types and their widths must agree."""
  widths = values["block_out_channels"]
  if not isinstance(widths, tuple) or not widths:
    raise fields.unsupported(NAME, "block_out_channels", widths, "a list of channel counts")
  for name, options in (("down_block_types", DOWN), ("up_block_types", UP)):
    kinds = values[name]
    if not isinstance(kinds, tuple) or len(kinds) != len(widths):
      expected = f"{len(widths)} names, one for each of block_out_channels"
      raise fields.unsupported(NAME, name, kinds, expected)
    for kind in kinds:
      fields.check_choice(NAME, name, kind, options)
  return len(widths)


def read(config: Mapping[str, Any]) -> UNetConfig:
  """Reads diffusers' config.json of a UNet2DConditionModel.

  Args:
    config: Its fields; an absent one has diffusers' default.

  Returns:
    A `UNetConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: the constructor of diffusers' UNet2DConditionModel (0.42), which was read. There
    `attention_head_dim` is, in spite of its name, the number of heads.
  """
  values = fields.read(NAME, config, defaults=DEFAULTS, fixed=FIXED, idle=IDLE)
  blocks = _check_blocks(values)
  widths = _per_block("block_out_channels", values.pop("block_out_channels"), blocks)

  fields.check_choice(NAME, "act_fn", values.pop("act_fn"), ("silu", "swish"))
  for name in ("in_channels", "out_channels", "norm_num_groups"):
    fields.check_count(NAME, name, values[name])
  for name in ("conv_in_kernel", "conv_out_kernel"):
    if fields.check_count(NAME, name, values[name]) % 2 == 0:
      raise fields.unsupported(NAME, name, values[name], "an odd size")

  groups = values["norm_num_groups"]
  for width in widths:
    if width % groups:
      expected = f"a divisor of every width in block_out_channels = {widths}"
      raise fields.unsupported(NAME, "norm_num_groups", groups, expected)

  given = values.pop("num_attention_heads")
  if given is not None:
    expected = "null: diffusers refuses it and reads the number of heads from attention_head_dim"
    raise fields.unsupported(NAME, "num_attention_heads", given, expected)
  heads = _per_block("attention_head_dim", values.pop("attention_head_dim"), blocks)
  # The coarsest resolution has attention always, in the middle block.
  attends = [
    values["down_block_types"][i] == DOWN[0] or values["up_block_types"][-1 - i] == UP[0]
    for i in range(blocks - 1)
  ] + [True]
  for width, n, attention in zip(widths, heads, attends, strict=True):
    if attention and width % n:
      expected = f"a divisor of the block's width {width} (it is the number of heads)"
      raise fields.unsupported(NAME, "attention_head_dim", n, expected)

  layers = _per_block("layers_per_block", values.pop("layers_per_block"), blocks)
  depths = values.pop("transformer_layers_per_block")
  up = values.pop("reverse_transformer_layers_per_block")
  nested = isinstance(depths, tuple) and any(isinstance(d, tuple) for d in depths)
  if up is None and nested:
    expected = "a list of lists only beside reverse_transformer_layers_per_block, for the way up"
    raise fields.unsupported(NAME, "transformer_layers_per_block", depths, expected)
  if up is None:
    up = depths[::-1] if isinstance(depths, tuple) else depths
  up_layers = tuple(n + 1 for n in layers[::-1])

  time = values.pop("time_embedding_dim")
  context = values.pop("cross_attention_dim")
  return UNetConfig(
    **values,
    block_out_channels=widths,
    layers_per_block=layers,
    heads=heads,
    cross_attention_dim=_per_block("cross_attention_dim", context, blocks),
    transformer_depths=_depths("transformer_layers_per_block", depths, layers),
    up_transformer_depths=_depths("reverse_transformer_layers_per_block", up, up_layers),
    time_embedding_dim=4 * widths[0] if time is None else time,
  )
