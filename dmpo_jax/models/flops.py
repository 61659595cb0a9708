"""Model FLOPs: the arithmetic that networks and a train step need, from configs and sizes alone.

The convention, everywhere in this file:

- A multiplication and an addition are two operations: FLOPs = 2 · multiply-adds.
- Counted are convolutions, linear layers and the two products of attention (q kᵀ and weights v).
  Norms, activations, softmax, biases and embedding tables are not: well under 2% in the networks
  that are published.
- A convolution counts its whole window at the border too, as PyTorch's counters do (XLA leaves the
  padding out).
- Causal attention counts the whole square.
- The backward pass is two forwards: the gradient of the inputs and the gradient of the weights.
  What rematerialisation or a flash kernel computes again is not counted, nor are the optimizer and
  the moving average: these are the FLOPs of the model, not of the machine.

SD1.5 at latents of 64x64 with 77 tokens: 0.803 TFLOP a forward of the UNet; SDXL at 128x128: 6.76.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dmpo_jax.errors import InputError
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.models.vae import config as vae_config

Config = Mapping[str, Any]

# Peak dense bfloat16 FLOP/s of a device, by what jax calls its kind; of a GPU, by the beginning of
# that, the longest that fits. TPUs: "Peak compute per chip (bf16)" on cloud.google.com/tpu/docs,
# pages v4, v5e, v5p, v6e. GPUs: NVIDIA's data sheets, "without sparsity".
PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA H200": 989.4e12,
  "NVIDIA H100": 989.4e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA L4": 121e12,
}


def peak(device_kind: str) -> float | None:
  """Peak dense bfloat16 FLOP/s of a device.

  Args:
    device_kind: As jax names it: `jax.devices()[0].device_kind`.

  Returns:
    FLOP/s; None for a device that `PEAKS` does not know.
  """
  gpus = [kind for kind in PEAKS if kind.startswith("NVIDIA")]
  fitting = [kind for kind in gpus if device_kind.startswith((kind + " ", kind + "-"))]
  return PEAKS.get(device_kind, PEAKS[max(fitting, key=len)] if fitting else None)


def forward(config: Config, height: int, width: int, tokens: int) -> int:
  """FLOPs of one forward of a UNet on one image.

  Args:
    config: diffusers' config.json of a UNet2DConditionModel.
    height: Of what it denoises (latents, or pixels without an autoencoder).
    width: Of the same.
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
    shortcut = 0 if inputs == outputs else _conv(area, inputs, outputs, 1)
    convolutions = _conv(area, inputs, outputs) + _conv(area, outputs, outputs) + shortcut
    return convolutions + _linear(1, time, outputs)

  def transformer(area: int, channels: int, depth: int) -> int:
    block = _linear(area, channels, 4 * channels) + _attention(area, area, channels)
    block += _linear(area, channels, 2 * channels) + _attention(area, tokens, channels)
    block += _linear(tokens, context, 2 * channels)
    block += _linear(area, channels, 8 * channels) + _linear(area, 4 * channels, channels)
    return 2 * _linear(area, channels, channels) + depth * block  # proj_in and proj_out

  total = _conv(areas[0], net.in_channels, finest, net.conv_in_kernel)
  total += _conv(areas[0], finest, net.out_channels, net.conv_out_kernel)
  total += _linear(1, finest, time) + _linear(1, time, time)
  if net.text_time is not None:
    added = net.text_time.text + unet_config.TIME_IDS * net.text_time.sinusoids
    total += _linear(1, added, time) + _linear(1, time, time)

  skips, channels = [finest], finest
  for i, (level, area) in enumerate(zip(net.levels, areas, strict=True)):
    for j in range(level.layers):
      total += resnet(area, channels, level.width)
      channels = level.width
      total += transformer(area, channels, level.down[j]) if level.down else 0
      skips.append(channels)
    if i + 1 < len(areas):
      total += _conv(areas[i + 1], channels, channels)
      skips.append(channels)

  total += 2 * resnet(areas[-1], coarsest, coarsest)
  total += transformer(areas[-1], coarsest, net.middle)

  for i in reversed(range(len(areas))):
    level = net.levels[i]
    for j in range(level.layers + 1):
      total += resnet(areas[i], channels + skips.pop(), level.width)
      channels = level.width
      total += transformer(areas[i], channels, level.up[j]) if level.up else 0
    if i:
      total += _conv(areas[i - 1], channels, channels)
  return total


def text(config: Config, tokens: int) -> int:
  """FLOPs of one forward of a text encoder on one caption.

  Args:
    config: transformers' config.json of a CLIPTextModel or CLIPTextModelWithProjection.
    tokens: Length of the caption, padding included.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = clip_config.read(config)
  wide = net.hidden_size
  layer = _linear(tokens, wide, 4 * wide) + _attention(tokens, tokens, wide)
  layer += 2 * _linear(tokens, wide, net.intermediate_size)
  projection = 0 if net.projection_dim is None else _linear(1, wide, net.projection_dim)
  return net.num_hidden_layers * layer + projection


def encode(config: Config, height: int, width: int) -> int:
  """FLOPs of encoding one image.

  Args:
    config: diffusers' config.json of an AutoencoderKL.
    height: Of the image in pixels.
    width: Of the image in pixels.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = vae_config.read(config)
  widths, area = net.block_out_channels, height * width
  total, channels = _conv(area, net.in_channels, widths[0]), widths[0]
  for i, level in enumerate(widths):
    for _ in range(net.layers_per_block):
      total += _vae_resnet(area, channels, level)
      channels = level
    if i + 1 < len(widths):
      height, width = height // 2, width // 2
      area = height * width
      total += _conv(area, channels, channels)
  total += _vae_middle(net, area, channels)
  moments = 2 * net.latent_channels
  total += _conv(area, channels, moments)
  return total + (_conv(area, moments, moments, 1) if net.use_quant_conv else 0)


def decode(config: Config, height: int, width: int) -> int:
  """FLOPs of decoding the latents of one image.

  Args:
    config: diffusers' config.json of an AutoencoderKL.
    height: Of the latents.
    width: Of the latents.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = vae_config.read(config)
  widths, area, latents = net.block_out_channels[::-1], height * width, net.latent_channels
  total = _conv(area, latents, latents, 1) if net.use_post_quant_conv else 0
  channels = widths[0]
  total += _conv(area, latents, channels) + _vae_middle(net, area, channels)
  for i, level in enumerate(widths):
    for _ in range(net.layers_per_block + 1):
      total += _vae_resnet(area, channels, level)
      channels = level
    if i + 1 < len(widths):
      area *= 4
      total += _conv(area, channels, channels)
  return total + _conv(area, channels, net.out_channels)


def per_example(
  configs: Mapping[str, Config],
  *,
  height: int,
  width: int,
  tokens: int,
  images: int = 2,
  trained: Iterable[str] = ("unet",),
  reference: bool = True,
  lora: bool = False,
  encoded: Iterable[str] = (),
) -> dict[str, int]:
  """Model FLOPs of one example in a train step, by component.

      network, trained: (3 + reference) forwards;   trained as LoRA: (2 + reference)
      text encoder, frozen: 1 of the caption;   autoencoder: 1 encoding of each image

  A UNet forwards each image, a text encoder the one caption that they share. A pair of `dpo` thus
  costs 3·2 + 2 = 8 forwards of the UNet, one of `mapo` (no reference) 6, and an image of `sft` 3.
  A LoRA needs no gradient of the frozen kernels, so its backward pass is one forward: a pair of
  `dpo` costs 6. The products of its own factors, about 3 rank (I + O) / (I O) of a layer's, are not
  counted.

  Args:
    configs: Those of the pipeline, by component: unet, text_encoder, text_encoder_2, vae.
    height: Of the images in pixels.
    width: Of the images in pixels.
    tokens: Length of the captions, padding included.
    images: Images of an example: 2 of a pair.
    trained: Components that are trained.
    reference: Whether the frozen starting pipeline is evaluated too.
    lora: Whether LoRAs of the trained components are trained, in place of the whole.
    encoded: Components whose result is stored with the data, so that the step does without them.

  Returns:
    Component -> FLOPs; their sum is what an example costs.

  Raises:
    InputError: A network is not supported, or a trained component is not there or is encoded.
  """
  trained, encoded = set(trained), set(encoded)
  if wrong := sorted(trained - set(configs)) + sorted(trained & encoded):
    raise InputError(f"{wrong[0]!r} cannot be trained: it is not in the pipeline, or encoded ahead")
  forwards = {}
  latents = (height, width)
  if "vae" in configs:
    forwards["vae"] = images * encode(configs["vae"], height, width)
    scale = 2 ** (len(vae_config.read(configs["vae"]).block_out_channels) - 1)
    latents = (height // scale, width // scale)
  for name in ("text_encoder", "text_encoder_2"):
    if name in configs:
      forwards[name] = text(configs[name], tokens)
  forwards["unet"] = images * forward(configs["unet"], *latents, tokens)

  def times(name: str) -> int:
    if name in trained:
      return (2 if lora else 3) + reference
    # Behind a trained text encoder the UNet passes gradients on, and differs from the reference's.
    return 1 if name != "unet" else 2 + reference

  return {name: times(name) * count for name, count in forwards.items() if name not in encoded}


def _conv(area: int, inputs: int, outputs: int, size: int = 3) -> int:
  """A convolution with a result of `area` positions."""
  return 2 * area * size * size * inputs * outputs


def _linear(rows: int, inputs: int, outputs: int) -> int:
  return 2 * rows * inputs * outputs


def _attention(queries: int, keys: int, channels: int) -> int:
  """q kᵀ and weights v, over all heads; the projections are linear layers."""
  return 4 * queries * keys * channels


def _vae_resnet(area: int, inputs: int, outputs: int) -> int:
  shortcut = 0 if inputs == outputs else _conv(area, inputs, outputs, 1)
  return _conv(area, inputs, outputs) + _conv(area, outputs, outputs) + shortcut


def _vae_middle(net: vae_config.VAEConfig, area: int, channels: int) -> int:
  attention = _linear(area, channels, 4 * channels) + _attention(area, area, channels)
  return 2 * _vae_resnet(area, channels, channels) + net.mid_block_add_attention * attention
