"""Residual layers, resampling, and the down, middle and up blocks made of them."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Conv, GroupNorm, Linear
from dmpo_jax.models.unet.attention import Transformer2DModel, TransformerOptions


@dataclasses.dataclass(frozen=True)
class BlockOptions:
  """Options of all layers of a block.

  Attributes:
    outputs: Output channels of the block.
    time: Channels of the time embedding.
    groups: Groups of the GroupNorms.
    eps: Added to the variance in the residual layers' norms.
    resample: Whether the block ends in a down- or up-sampling convolution.
    compute: How the layers compute.
    attention: Options of the transformer after each residual layer; empty for no transformers.
  """

  outputs: int
  time: int
  groups: int
  eps: float
  resample: bool
  compute: Compute
  attention: Sequence[TransformerOptions] = ()


class ResnetBlock2D(nnx.Module):
  """x + f(x, time): two convolutions, each after GroupNorm and SiLU, with the time in between.

  Call with x `[B, H, W, I]` and the activated time embedding `[B, T]`; returns `[B, H, W, O]`.
  """

  def __init__(self, inputs: int, options: BlockOptions):
    outputs = options.outputs
    self.compute = compute = options.compute
    self.norm1 = GroupNorm(inputs, options.groups, options.eps, compute=compute)
    self.conv1 = Conv(inputs, outputs, compute=compute)
    self.time_emb_proj = Linear(options.time, outputs, compute=compute)
    self.norm2 = GroupNorm(outputs, options.groups, options.eps, compute=compute)
    self.conv2 = Conv(outputs, outputs, compute=compute)
    self.conv_shortcut = Conv(inputs, outputs, 1, compute=compute) if inputs != outputs else None

  def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    y = y + self.time_emb_proj(time)[:, None, None, :]
    y = remat.checkpoint_name(y, remat.CONVOLUTION, self.compute.remat)
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nnx.Module):
  """Halves height and width, rounding up: `[B, H, W, C]` to `[B, H/2, W/2, C]`."""

  def __init__(self, channels: int, *, compute: Compute):
    self.conv = Conv(channels, channels, stride=2, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(x)


class Upsample2D(nnx.Module):
  """Doubles an image by repetition, crops it to size (height, width), and convolves it."""

  def __init__(self, channels: int, *, compute: Compute):
    self.conv = Conv(channels, channels, compute=compute)

  def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
    return self.conv(kernels.upsample_nearest(x, *size))


def transformers(options: BlockOptions) -> nnx.List | None:
  """The transformers of a block; None, and no parameters, for a block without attention."""
  models = [Transformer2DModel(options.outputs, each) for each in options.attention]
  return nnx.List(models) if models else None


class DownBlock(nnx.Module):
  """DownBlock2D and CrossAttnDownBlock2D: layers at one resolution, then downsampling."""

  def __init__(self, inputs: int, layers: int, options: BlockOptions):
    self.compute = options.compute
    widths = [inputs] + [options.outputs] * (layers - 1)
    self.resnets = nnx.List([ResnetBlock2D(width, options) for width in widths])
    self.attentions = transformers(options)
    down = Downsample2D(options.outputs, compute=options.compute) if options.resample else None
    self.downsamplers = None if down is None else nnx.List([down])

  def __call__(
    self, x: jax.Array, time: jax.Array, context: jax.Array
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the image `[B, H', W', O]` and the outputs of all layers, for the up blocks."""
    block, skips = partial(remat.checkpoint_block, policy=self.compute.remat), []
    for i, resnet in enumerate(self.resnets):
      x = block(resnet, x, time)
      if self.attentions is not None:
        x = self.attentions[i](x, context)
      skips.append(x)
    if self.downsamplers is not None:
      x = block(self.downsamplers[0], x)
      skips.append(x)
    return x, skips


class MidBlock(nnx.Module):
  """UNetMidBlock2DCrossAttn: a residual layer, a transformer, a residual layer.

  UNetMidBlock2D, without attention: the first residual layer alone.
  """

  def __init__(self, options: BlockOptions):
    self.compute = options.compute
    layers = 1 + len(options.attention)
    self.resnets = nnx.List([ResnetBlock2D(options.outputs, options) for _ in range(layers)])
    self.attentions = transformers(options)

  def __call__(self, x: jax.Array, time: jax.Array, context: jax.Array) -> jax.Array:
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    x = block(self.resnets[0], x, time)
    for resnet, attention in zip(list(self.resnets)[1:], self.attentions or (), strict=True):
      x = block(resnet, attention(x, context), time)
    return x


class UpBlock(nnx.Module):
  """UpBlock2D and CrossAttnUpBlock2D: layers with skip connections, then upsampling."""

  def __init__(self, inputs: int, skips: Sequence[int], options: BlockOptions):
    self.compute = options.compute
    widths = [inputs] + [options.outputs] * (len(skips) - 1)
    self.resnets = nnx.List(
      [ResnetBlock2D(width + skip, options) for width, skip in zip(widths, skips, strict=True)]
    )
    self.attentions = transformers(options)
    up = Upsample2D(options.outputs, compute=options.compute) if options.resample else None
    self.upsamplers = None if up is None else nnx.List([up])

  def __call__(
    self,
    x: jax.Array,
    skips: Sequence[jax.Array],
    time: jax.Array,
    context: jax.Array,
    size: tuple[int, int],
  ) -> jax.Array:
    """Returns `[B, height, width, O]` with (height, width) = size; each layer has one skip."""
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    for i, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):

      def join(x, skip, time, resnet=resnet):
        return resnet(jnp.concatenate([x, skip], axis=-1), time)

      x = block(join, x, skip, time)
      if self.attentions is not None:
        x = self.attentions[i](x, context)
    if self.upsamplers is not None:
      x = block(lambda x: self.upsamplers[0](x, size), x)
    return x
