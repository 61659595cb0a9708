"""FLOPs of a UNet2DConditionModel, from its config; the convention is `models.layer_flops`'."""

import math
from collections.abc import Mapping
from typing import Any

from dmpo_jax.models.layer_flops import attention, convolution, linear
from dmpo_jax.models.unet import config as unet_config


def forward(config: Mapping[str, Any], height: int, width: int, tokens: int) -> int:
  """FLOPs of one forward pass on one image.

  SD1.5 with latents of 64x64 and 77 tokens: 0.803 TFLOP. SDXL with 128x128: 6.76 TFLOP.

  Args:
    config: diffusers' config.json of a UNet2DConditionModel.
    height: Height of the noisy image in latents, or in pixels without an autoencoder.
    width: Width of the noisy image in the same unit.
    tokens: Length of the text embedding.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = unet_config.read(config)
  sizes = [(height, width)]
  for _ in net.levels[1:]:
    sizes.append(tuple(-(-side // 2) for side in sizes[-1]))  # halving rounds up
  areas = [math.prod(size) for size in sizes]
  finest, coarsest = net.levels[0].width, net.levels[-1].width
  time, context = net.time_embedding_dim, net.cross_attention_dim

  def resnet(area: int, inputs: int, outputs: int) -> int:
    shortcut = 0 if inputs == outputs else convolution(area, inputs, outputs, 1)
    convolutions = convolution(area, inputs, outputs) + convolution(area, outputs, outputs)
    return convolutions + shortcut + linear(1, time, outputs)

  def transformer(area: int, channels: int, depth: int) -> int:
    block = linear(area, channels, 4 * channels) + attention(area, area, channels)
    block += linear(area, channels, 2 * channels) + attention(area, tokens, channels)
    block += linear(tokens, context, 2 * channels)
    block += linear(area, channels, 8 * channels) + linear(area, 4 * channels, channels)
    return 2 * linear(area, channels, channels) + depth * block  # proj_in and proj_out

  total = convolution(areas[0], net.in_channels, finest, net.conv_in_kernel)
  total += convolution(areas[0], finest, net.out_channels, net.conv_out_kernel)
  total += linear(1, finest, time) + linear(1, time, time)
  if net.text_time is not None:
    added = net.text_time.text + unet_config.TIME_IDS * net.text_time.sinusoids
    total += linear(1, added, time) + linear(1, time, time)

  skips, channels = [finest], finest
  for i, (level, area) in enumerate(zip(net.levels, areas, strict=True)):
    for j in range(level.layers):
      total += resnet(area, channels, level.width)
      channels = level.width
      total += transformer(area, channels, level.down[j]) if level.down else 0
      skips.append(channels)
    if i + 1 < len(areas):
      total += convolution(areas[i + 1], channels, channels)
      skips.append(channels)

  if net.middle is not None:
    total += (2 if net.middle else 1) * resnet(areas[-1], coarsest, coarsest)
    total += transformer(areas[-1], coarsest, net.middle) if net.middle else 0

  for i in reversed(range(len(areas))):
    level = net.levels[i]
    for j in range(level.layers + 1):
      total += resnet(areas[i], channels + skips.pop(), level.width)
      channels = level.width
      total += transformer(areas[i], channels, level.up[j]) if level.up else 0
    if i:
      total += convolution(areas[i - 1], channels, channels)
  return total
