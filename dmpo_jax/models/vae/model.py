"""The image autoencoder, AutoencoderKL, with diffusers' names and arithmetic."""

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.layers import Conv, Empty, GroupNorm, Linear
from dmpo_jax.models.unet.blocks import Upsample2D
from dmpo_jax.models.vae.config import VAEConfig

EPS = 1e-6  # in every norm, whatever the UNet's is


class ResnetBlock2D(nnx.Module):
  """x + f(x): two convolutions behind GroupNorm and SiLU. `[B, H, W, I]` to `[B, H, W, O]`."""

  def __init__(self, inputs: int, outputs: int, groups: int):
    self.norm1 = GroupNorm(inputs, groups, EPS)
    self.conv1 = Conv(inputs, outputs)
    self.norm2 = GroupNorm(outputs, groups, EPS)
    self.conv2 = Conv(outputs, outputs)
    self.conv_shortcut = Conv(inputs, outputs, 1) if inputs != outputs else None

  def __call__(self, x: jax.Array) -> jax.Array:
    y = remat.keep(self.conv1(jax.nn.silu(self.norm1(x))), remat.CONVOLUTION)
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
  """x + attention of the positions of an image to each other, with one head. `[B, H, W, C]`."""

  def __init__(self, channels: int, groups: int):
    self.group_norm = GroupNorm(channels, groups, EPS)
    self.to_q = Linear(channels, channels)
    self.to_k = Linear(channels, channels)
    self.to_v = Linear(channels, channels)
    self.to_out = nnx.List([Linear(channels, channels), Empty()])

  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = self.group_norm(x).reshape(b, h * w, c)  # [B, H*W, C]
    q, k, v = (f(y)[:, :, None, :] for f in (self.to_q, self.to_k, self.to_v))  # [B, H*W, 1, C]
    return x + self.to_out[0](kernels.attention(q, k, v)[:, :, 0, :]).reshape(x.shape)


class Downsample2D(nnx.Module):
  """Halves height and width, rounding down: it pads on the bottom and right alone."""

  def __init__(self, channels: int):
    self.conv = Conv(channels, channels, stride=2, padding=(0, 1))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(x)


class DownBlock(nnx.Module):
  """DownEncoderBlock2D: residual layers, then halving unless it is the last."""

  def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: bool):
    widths = [inputs] + [outputs] * (layers - 1)
    self.resnets = nnx.List([ResnetBlock2D(width, outputs, groups) for width in widths])
    self.downsamplers = nnx.List([Downsample2D(outputs)]) if resample else None

  def __call__(self, x: jax.Array) -> jax.Array:
    for resnet in self.resnets:
      x = remat.block(resnet, x)
    return x if self.downsamplers is None else remat.block(self.downsamplers[0], x)


class MidBlock(nnx.Module):
  """UNetMidBlock2D: a residual layer, attention or nothing, a residual layer."""

  def __init__(self, channels: int, groups: int, attention: bool):
    self.resnets = nnx.List([ResnetBlock2D(channels, channels, groups) for _ in range(2)])
    self.attentions = nnx.List([Attention(channels, groups)]) if attention else None

  def __call__(self, x: jax.Array) -> jax.Array:
    x = remat.block(self.resnets[0], x)
    if self.attentions is not None:
      x = remat.block(self.attentions[0], x)
    return remat.block(self.resnets[1], x)


class UpBlock(nnx.Module):
  """UpDecoderBlock2D: residual layers, then doubling unless it is the last."""

  def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: bool):
    widths = [inputs] + [outputs] * (layers - 1)
    self.resnets = nnx.List([ResnetBlock2D(width, outputs, groups) for width in widths])
    self.upsamplers = nnx.List([Upsample2D(outputs)]) if resample else None

  def __call__(self, x: jax.Array) -> jax.Array:
    for resnet in self.resnets:
      x = remat.block(resnet, x)
    if self.upsamplers is None:
      return x
    size = (2 * x.shape[1], 2 * x.shape[2])
    return remat.block(lambda x: self.upsamplers[0](x, size), x)


class Encoder(nnx.Module):
  """Images `[B, H, W, C]` to mean and log variance `[B, h, w, 2 Z]` before `quant_conv`."""

  def __init__(self, config: VAEConfig):
    widths, groups = config.block_out_channels, config.norm_num_groups
    self.conv_in = Conv(config.in_channels, widths[0])
    self.down_blocks = nnx.List(
      [
        DownBlock(inputs, outputs, config.layers_per_block, groups, resample=i + 1 < len(widths))
        for i, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
      ]
    )
    self.mid_block = MidBlock(widths[-1], groups, config.mid_block_add_attention)
    self.conv_norm_out = GroupNorm(widths[-1], groups, EPS)
    self.conv_out = Conv(widths[-1], 2 * config.latent_channels)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = remat.block(self.conv_in, x)
    for block in self.down_blocks:
      x = block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
  """Latents `[B, h, w, Z]` behind `post_quant_conv` to images `[B, H, W, C]`."""

  def __init__(self, config: VAEConfig):
    widths, groups = config.block_out_channels[::-1], config.norm_num_groups
    layers = config.layers_per_block + 1
    self.conv_in = Conv(config.latent_channels, widths[0])
    self.mid_block = MidBlock(widths[0], groups, config.mid_block_add_attention)
    self.up_blocks = nnx.List(
      [
        UpBlock(inputs, outputs, layers, groups, resample=i + 1 < len(widths))
        for i, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
      ]
    )
    self.conv_norm_out = GroupNorm(widths[-1], groups, EPS)
    self.conv_out = Conv(widths[-1], config.out_channels)

  def __call__(self, z: jax.Array) -> jax.Array:
    x = self.mid_block(remat.block(self.conv_in, z))
    for block in self.up_blocks:
      x = block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
  """Encodes images to the moments of a Gaussian over latents, and decodes latents."""

  def __init__(self, config: VAEConfig):
    self.config = config
    latents = config.latent_channels
    self.encoder = Encoder(config)
    self.decoder = Decoder(config)
    self.quant_conv = Conv(2 * latents, 2 * latents, 1) if config.use_quant_conv else None
    self.post_quant_conv = Conv(latents, latents, 1) if config.use_post_quant_conv else None

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance `[B, h, w, Z]` of the latents of images `[B, H, W, C]`."""
    moments = self.encoder(images)
    if self.quant_conv is not None:
      moments = self.quant_conv(moments)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, -30, 20)

  def decode(self, z: jax.Array) -> jax.Array:
    """Images `[B, H, W, C]` of latents `[B, h, w, Z]`."""
    return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
