"""FLOPs of an SD3Transformer2DModel, from its config; the convention is `models.layer_flops`'."""

from collections.abc import Mapping
from typing import Any

from dmpo_jax.models.layer_flops import attention, convolution, linear
from dmpo_jax.models.mmdit import config as mmdit_config
from dmpo_jax.models.mmdit.model import TIME_CHANNELS


def forward(config: Mapping[str, Any], height: int, width: int, tokens: int) -> int:
  """FLOPs of one forward pass on one image.

  SD3.5-medium with latents of 64x64 and 333 tokens: 2.44 TFLOP, of 128x128: 11.24 TFLOP. The
  queries of the last layer's text, whose results nothing reads, are not computed and not counted.

  Args:
    config: diffusers' config.json of an SD3Transformer2DModel.
    height: Height of the noisy image in latents.
    width: Width of the noisy image in latents.
    tokens: Length of the text embedding.

  Returns:
    FLOPs.

  Raises:
    InputError: A field or its value is not supported.
  """
  net = mmdit_config.read(config)
  channels, size = net.width, net.patch_size
  patches = (height // size) * (width // size)
  total = convolution(patches, net.in_channels, channels, size)
  total += linear(1, TIME_CHANNELS, channels) + linear(1, net.pooled_projection_dim, channels)
  total += 2 * linear(1, channels, channels)
  total += linear(tokens, net.joint_attention_dim, channels)

  def feed_forward(rows: int) -> int:
    return 2 * linear(rows, channels, 4 * channels)

  for layer in range(net.num_layers):
    dual, last = layer in net.dual_attention_layers, layer == net.num_layers - 1
    total += linear(1, channels, (9 if dual else 6) * channels + (2 if last else 6) * channels)
    queries = patches + (0 if last else tokens)
    total += linear(patches, channels, 4 * channels)
    total += linear(tokens, channels, (2 if last else 4) * channels)
    total += attention(queries, patches + tokens, channels)
    if dual:
      total += linear(patches, channels, 4 * channels) + attention(patches, patches, channels)
    total += feed_forward(patches) + (0 if last else feed_forward(tokens))
  total += linear(1, channels, 2 * channels)
  return total + linear(patches, channels, size**2 * net.out_channels)
