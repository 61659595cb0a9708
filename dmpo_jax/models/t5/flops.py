"""FLOPs of T5's encoder, from its config; the convention is `models.layer_flops`'."""

from collections.abc import Mapping
from typing import Any

from dmpo_jax.models.layer_flops import attention, linear
from dmpo_jax.models.t5 import config as t5_config


def forward(config: Mapping[str, Any], tokens: int) -> int:
  """FLOPs of one forward pass on one caption.

  Args:
    config: transformers' config.json of a T5EncoderModel.
    tokens: Length of the caption, padding included.

  Returns:
    FLOPs.

  Raises:
    InputError: A field or its value is not supported.
  """
  net = t5_config.read(config)
  inner = net.num_heads * net.d_kv
  layer = linear(tokens, net.d_model, 4 * inner) + attention(tokens, tokens, inner)
  layer += (3 if net.gated else 2) * linear(tokens, net.d_model, net.d_ff)
  return net.num_layers * layer
