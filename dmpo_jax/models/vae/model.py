"""The image autoencoder, AutoencoderKL, with diffusers' names and arithmetic."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.models import kernels, remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Conv, Empty, GroupNorm, Linear
from dmpo_jax.models.unet.blocks import Upsample2D
from dmpo_jax.models.vae.config import VAEConfig

EPS = 1e-6  # of every norm, independent of the UNet's


class ResnetBlock2D(nnx.Module):
  """x + f(x): two convolutions, each after GroupNorm and SiLU. `[B, H, W, I]` to `[B, H, W, O]`."""

  def __init__(self, inputs: int, outputs: int, groups: int, *, compute: Compute):
    self.compute = compute
    self.norm1 = GroupNorm(inputs, groups, EPS, compute=compute)
    self.conv1 = Conv(inputs, outputs, compute=compute)
    self.norm2 = GroupNorm(outputs, groups, EPS, compute=compute)
    self.conv2 = Conv(outputs, outputs, compute=compute)
    self.conv_shortcut = Conv(inputs, outputs, 1, compute=compute) if inputs != outputs else None

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    y = remat.checkpoint_name(y, remat.CONVOLUTION, self.compute.remat)
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
  """x + self-attention over the positions of an image, with one head: `[B, H, W, C]`."""

  def __init__(self, channels: int, groups: int, *, compute: Compute):
    self.compute = compute
    self.group_norm = GroupNorm(channels, groups, EPS, compute=compute)
    self.to_q = Linear(channels, channels, compute=compute)
    self.to_k = Linear(channels, channels, compute=compute)
    self.to_v = Linear(channels, channels, compute=compute)
    self.to_out = nnx.List([Linear(channels, channels, compute=compute), Empty()])

  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = self.group_norm(x).reshape(b, h * w, c)  # [B, H*W, C]
    q, k, v = (f(y)[:, :, None, :] for f in (self.to_q, self.to_k, self.to_v))  # [B, H*W, 1, C]
    out = kernels.attention(q, k, v, compute=self.compute)[:, :, 0, :]  # [B, H*W, C]
    return x + self.to_out[0](out).reshape(x.shape)


class Downsample2D(nnx.Module):
  """Halves height and width, rounding down: pads only on the bottom and the right."""

  def __init__(self, channels: int, *, compute: Compute):
    self.conv = Conv(channels, channels, stride=2, padding=(0, 1), compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(x)


class DownBlock(nnx.Module):
  """DownEncoderBlock2D: residual layers, then downsampling if `resample`."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    layers: int,
    groups: int,
    resample: bool,
    *,
    compute: Compute,
  ):
    self.compute = compute
    widths = [inputs] + [outputs] * (layers - 1)
    self.resnets = nnx.List(
      [ResnetBlock2D(width, outputs, groups, compute=compute) for width in widths]
    )
    self.downsamplers = nnx.List([Downsample2D(outputs, compute=compute)]) if resample else None

  def __call__(self, x: jax.Array) -> jax.Array:
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    for resnet in self.resnets:
      x = block(resnet, x)
    return x if self.downsamplers is None else block(self.downsamplers[0], x)


class MidBlock(nnx.Module):
  """UNetMidBlock2D: a residual layer, optional attention, a residual layer."""

  def __init__(self, channels: int, groups: int, attention: bool, *, compute: Compute):
    self.compute = compute
    self.resnets = nnx.List(
      [ResnetBlock2D(channels, channels, groups, compute=compute) for _ in range(2)]
    )
    self.attentions = (
      nnx.List([Attention(channels, groups, compute=compute)]) if attention else None
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    x = block(self.resnets[0], x)
    if self.attentions is not None:
      x = block(self.attentions[0], x)
    return block(self.resnets[1], x)


class UpBlock(nnx.Module):
  """UpDecoderBlock2D: residual layers, then upsampling if `resample`."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    layers: int,
    groups: int,
    resample: bool,
    *,
    compute: Compute,
  ):
    self.compute = compute
    widths = [inputs] + [outputs] * (layers - 1)
    self.resnets = nnx.List(
      [ResnetBlock2D(width, outputs, groups, compute=compute) for width in widths]
    )
    self.upsamplers = nnx.List([Upsample2D(outputs, compute=compute)]) if resample else None

  def __call__(self, x: jax.Array) -> jax.Array:
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    for resnet in self.resnets:
      x = block(resnet, x)
    if self.upsamplers is None:
      return x
    size = (2 * x.shape[1], 2 * x.shape[2])
    return block(lambda x: self.upsamplers[0](x, size), x)


class Encoder(nnx.Module):
  """Images `[B, H, W, C]` to mean and log variance `[B, h, w, 2 Z]` before `quant_conv`."""

  def __init__(self, config: VAEConfig, compute: Compute):
    self.compute = compute
    widths, groups = config.block_out_channels, config.norm_num_groups
    self.conv_in = Conv(config.in_channels, widths[0], compute=compute)
    self.down_blocks = nnx.List(
      [
        DownBlock(
          inputs,
          outputs,
          config.layers_per_block,
          groups,
          resample=i + 1 < len(widths),
          compute=compute,
        )
        for i, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
      ]
    )
    self.mid_block = MidBlock(widths[-1], groups, config.mid_block_add_attention, compute=compute)
    self.conv_norm_out = GroupNorm(widths[-1], groups, EPS, compute=compute)
    self.conv_out = Conv(widths[-1], 2 * config.latent_channels, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = remat.checkpoint_block(self.conv_in, x, policy=self.compute.remat)
    for block in self.down_blocks:
      x = block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
  """Latents `[B, h, w, Z]` after `post_quant_conv` to images `[B, H, W, C]`."""

  def __init__(self, config: VAEConfig, compute: Compute):
    self.compute = compute
    widths, groups = config.block_out_channels[::-1], config.norm_num_groups
    layers = config.layers_per_block + 1
    self.conv_in = Conv(config.latent_channels, widths[0], compute=compute)
    self.mid_block = MidBlock(widths[0], groups, config.mid_block_add_attention, compute=compute)
    self.up_blocks = nnx.List(
      [
        UpBlock(inputs, outputs, layers, groups, resample=i + 1 < len(widths), compute=compute)
        for i, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
      ]
    )
    self.conv_norm_out = GroupNorm(widths[-1], groups, EPS, compute=compute)
    self.conv_out = Conv(widths[-1], config.out_channels, compute=compute)

  def __call__(self, z: jax.Array) -> jax.Array:
    x = remat.checkpoint_block(self.conv_in, z, policy=self.compute.remat)
    x = self.mid_block(x)
    for block in self.up_blocks:
      x = block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
  """Encodes images to the posterior (mean, log variance) of latents, and decodes latents."""

  def __init__(self, config: VAEConfig, compute: Compute):
    self.config, self.compute = config, compute
    latents = config.latent_channels
    self.encoder = Encoder(config, compute)
    self.decoder = Decoder(config, compute)
    self.quant_conv = (
      Conv(2 * latents, 2 * latents, 1, compute=compute) if config.use_quant_conv else None
    )
    self.post_quant_conv = (
      Conv(latents, latents, 1, compute=compute) if config.use_post_quant_conv else None
    )

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
