"""FLOPs of an AutoencoderKL, from its config; the convention is `models.layer_flops`'."""

from collections.abc import Mapping
from typing import Any

from dmpo_jax.models.layer_flops import attention, convolution, linear
from dmpo_jax.models.vae import config as vae_config


def encode(config: Mapping[str, Any], height: int, width: int) -> int:
  """FLOPs of encoding one image.

  Args:
    config: diffusers' config.json of an AutoencoderKL.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = vae_config.read(config)
  widths, area = net.block_out_channels, height * width
  total, channels = convolution(area, net.in_channels, widths[0]), widths[0]
  for i, level in enumerate(widths):
    for _ in range(net.layers_per_block):
      total += _resnet(area, channels, level)
      channels = level
    if i + 1 < len(widths):
      height, width = height // 2, width // 2
      area = height * width
      total += convolution(area, channels, channels)
  total += _middle(net, area, channels)
  moments = 2 * net.latent_channels
  total += convolution(area, channels, moments)
  return total + (convolution(area, moments, moments, 1) if net.use_quant_conv else 0)


def decode(config: Mapping[str, Any], height: int, width: int) -> int:
  """FLOPs of decoding the latents of one image.

  Args:
    config: diffusers' config.json of an AutoencoderKL.
    height: Height of the latents.
    width: Width of the latents.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = vae_config.read(config)
  widths, area, latents = net.block_out_channels[::-1], height * width, net.latent_channels
  total = convolution(area, latents, latents, 1) if net.use_post_quant_conv else 0
  channels = widths[0]
  total += convolution(area, latents, channels) + _middle(net, area, channels)
  for i, level in enumerate(widths):
    for _ in range(net.layers_per_block + 1):
      total += _resnet(area, channels, level)
      channels = level
    if i + 1 < len(widths):
      area *= 4
      total += convolution(area, channels, channels)
  return total + convolution(area, channels, net.out_channels)


def _resnet(area: int, inputs: int, outputs: int) -> int:
  shortcut = 0 if inputs == outputs else convolution(area, inputs, outputs, 1)
  return convolution(area, inputs, outputs) + convolution(area, outputs, outputs) + shortcut


def _middle(net: vae_config.VAEConfig, area: int, channels: int) -> int:
  layer = linear(area, channels, 4 * channels) + attention(area, area, channels)
  return 2 * _resnet(area, channels, channels) + net.mid_block_add_attention * layer
