"""The text-conditional UNet, UNet2DConditionModel, with diffusers' names and arithmetic."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models.attention import TransformerOptions
from dmpo_jax.models.blocks import BlockOptions, DownBlock, MidBlock, UpBlock
from dmpo_jax.models.layers import Conv, GroupNorm, Linear
from dmpo_jax.models.unet_config import UNetConfig


def sinusoids(timesteps: jax.Array, channels: int, *, flip: bool, shift: float) -> jax.Array:
  """Sines and cosines of t at geometrically spaced frequencies.

      f_k = 10000^(-k / (channels/2 - shift)),   [sin(t f), cos(t f)],  or cosines first if flip

  Args:
    timesteps: `[B]`, integers or floats.
    channels: Width of the result; an odd one ends in a zero.
    flip: Cosines first.
    shift: `freq_shift` of the config.

  Returns:
    float32 `[B, channels]`.

  Source: arXiv 1706.03762, section 3.5, in the variants that diffusers' config offers.
  """
  half = channels // 2
  frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000) / (half - shift)))
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]  # [B, channels/2]
  waves = (jnp.cos(angles), jnp.sin(angles)) if flip else (jnp.sin(angles), jnp.cos(angles))
  return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, channels % 2)))


class TimestepEmbedding(nnx.Module):
  """Two linear layers with SiLU in between: `[B, I]` to `[B, O]`."""

  def __init__(self, inputs: int, outputs: int):
    self.linear_1 = Linear(inputs, outputs)
    self.linear_2 = Linear(outputs, outputs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.linear_2(jax.nn.silu(self.linear_1(x)))


class UNet2DConditionModel(nnx.Module):
  """Predicts noise, velocity or image from a noisy image, its timestep and a text embedding."""

  def __init__(self, config: UNetConfig):
    self.config = config
    widths = config.block_out_channels
    time = config.time_embedding_dim
    last = len(widths) - 1

    def options(i: int, outputs: int, attention: bool, resample: bool, depths) -> BlockOptions:
      each = [
        TransformerOptions(
          heads=config.heads[i],
          layers=depth,
          context=config.cross_attention_dim[i],
          groups=config.norm_num_groups,
          linear_projection=config.use_linear_projection,
        )
        for depth in depths
      ]
      return BlockOptions(
        outputs=outputs,
        time=time,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        resample=resample,
        attention=tuple(each) if attention else (),
      )

    self.conv_in = Conv(config.in_channels, widths[0], config.conv_in_kernel)
    self.time_embedding = TimestepEmbedding(widths[0], time)

    down, skips, inputs = [], [widths[0]], widths[0]
    for i, kind in enumerate(config.down_block_types):
      attention = kind == "CrossAttnDownBlock2D"
      depths = config.transformer_depths[i]
      block = options(i, widths[i], attention, i < last, depths)
      down.append(DownBlock(inputs, config.layers_per_block[i], block))
      inputs = widths[i]
      skips += [inputs] * (config.layers_per_block[i] + (i < last))
    self.down_blocks = nnx.List(down)

    self.mid_block = MidBlock(
      options(last, inputs, True, False, config.transformer_depths[last][:1])
    )

    up = []
    for j, kind in enumerate(config.up_block_types):
      i = last - j  # the resolution: the way down, backwards
      attention = kind == "CrossAttnUpBlock2D"
      layers = config.layers_per_block[i] + 1
      block = options(i, widths[i], attention, j < last, config.up_transformer_depths[j])
      up.append(UpBlock(inputs, [skips.pop() for _ in range(layers)], block))
      inputs = widths[i]
    self.up_blocks = nnx.List(up)

    self.conv_norm_out = GroupNorm(widths[0], config.norm_num_groups, config.norm_eps)
    self.conv_out = Conv(widths[0], config.out_channels, config.conv_out_kernel)

  def __call__(self, sample: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
    """Predicts for each noisy image.

    Args:
      sample: `[B, H, W, C_in]`; its dtype is the dtype of the computation.
      timesteps: `[B]`.
      context: `[B, L, D]`, the text embedding.

    Returns:
      `[B, H, W, C_out]` in the dtype of sample.
    """
    config = self.config
    if config.center_input_sample:
      sample = 2 * sample - 1
    waves = sinusoids(
      timesteps,
      config.block_out_channels[0],
      flip=config.flip_sin_to_cos,
      shift=config.freq_shift,
    )
    # Every residual layer reads the activated embedding: activate it once.
    time = jax.nn.silu(self.time_embedding(waves.astype(sample.dtype)))

    x = self.conv_in(sample)
    skips = [x]
    for block in self.down_blocks:
      x, outputs = block(x, time, context)
      skips += outputs
    x = self.mid_block(x, time, context)
    for block in self.up_blocks:
      layers = len(block.resnets)
      skips, used = skips[:-layers], skips[-layers:]
      size = skips[-1].shape[1:3] if skips else x.shape[1:3]
      x = block(x, used[::-1], time, context, size)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


def check_inputs(
  config: UNetConfig, sample: jax.Array, timesteps: jax.Array, context: jax.Array
) -> None:
  """Raises InputError unless the shapes fit the network and each other."""
  if sample.ndim != 4 or sample.shape[-1] != config.in_channels:
    raise InputError(
      f"sample must be [B, H, W, {config.in_channels}] (channels last), got {list(sample.shape)}"
    )
  batch = sample.shape[0]
  if timesteps.shape != (batch,):
    raise InputError(f"timesteps must be [{batch}], one per image, got {list(timesteps.shape)}")
  widths = set(config.cross_attention_dim)
  if context.ndim != 3 or context.shape[0] != batch or {context.shape[2]} != widths:
    raise InputError(
      f"encoder_hidden_states must be [{batch}, L, {' or '.join(map(str, sorted(widths)))}], "
      f"got {list(context.shape)}"
    )
