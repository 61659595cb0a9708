"""FLOPs of CLIP's text encoders, from a config; the convention is `models.layer_flops`'."""

from collections.abc import Mapping
from typing import Any

from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.layer_flops import attention, linear


def forward(config: Mapping[str, Any], tokens: int) -> int:
  """FLOPs of one forward pass on one caption.

  Args:
    config: transformers' config.json of a CLIPTextModel or CLIPTextModelWithProjection.
    tokens: Length of the caption, padding included.

  Returns:
    FLOPs.

  Raises:
    InputError: The network, a field or its value is not supported.
  """
  net = clip_config.read(config)
  width = net.hidden_size
  layer = linear(tokens, width, 4 * width) + attention(tokens, tokens, width)
  layer += 2 * linear(tokens, width, net.intermediate_size)
  projection = 0 if net.projection_dim is None else linear(1, width, net.projection_dim)
  return net.num_hidden_layers * layer + projection
