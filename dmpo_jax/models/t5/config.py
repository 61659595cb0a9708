"""The config of T5's encoder: transformers' fields and defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmpo_jax.models import config_fields
from dmpo_jax.models.clip import config as clip_config

NAME = "T5EncoderModel"

DEFAULTS = {
  "vocab_size": 32128,
  "d_model": 512,
  "d_kv": 64,
  "d_ff": 2048,
  "num_layers": 6,
  "num_heads": 8,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "layer_norm_epsilon": 1e-6,
  "feed_forward_proj": "relu",
}

# Value of `feed_forward_proj` -> the fields that transformers derives from it and writes too.
FEED_FORWARD = {
  "relu": {"dense_act_fn": "relu", "is_gated_act": False},
  "gated-gelu": {"dense_act_fn": "gelu_new", "is_gated_act": True},
}

CONSTANTS = {
  "add_cross_attention": False,
  "chunk_size_feed_forward": 0,
  "cross_attention_hidden_size": None,
  "is_decoder": False,
  "pruned_heads": {},
  "tie_encoder_decoder": False,
}

# Fields of the decoder, of dropout, which an encoder of prompts does without, and of identity,
# initialisation, generation and output format.
IGNORED = clip_config.IGNORED | {
  "classifier_dropout",
  "dense_act_fn",
  "dropout_rate",
  "eos_token_id",
  "is_encoder_decoder",
  "is_gated_act",
  "n_positions",
  "num_decoder_layers",
  "output_past",
  "scale_decoder_outputs",
}

LIMITS = {
  "num_layers": config_fields.MAX_LAYERS,
  "relative_attention_num_buckets": 4096,
}


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The fields that shape the network, named as in transformers.

  Attributes:
    gated: Whether the feed-forward layer is gated by gelu (T5 v1.1) or a layer with relu (T5).
  """

  vocab_size: int
  d_model: int
  d_kv: int
  d_ff: int
  num_layers: int
  num_heads: int
  relative_attention_num_buckets: int
  relative_attention_max_distance: int
  layer_norm_epsilon: float
  gated: bool


def read(config: Mapping[str, Any]) -> T5Config:
  """Reads transformers' config.json of a T5EncoderModel.

  Args:
    config: Its fields; absent ones have transformers' defaults.

  Returns:
    A `T5Config`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: transformers' T5Config and T5EncoderModel (5.23).
  """
  values = config_fields.read(NAME, config, defaults=DEFAULTS, constants=CONSTANTS, ignored=IGNORED)
  kind = values.pop("feed_forward_proj")
  config_fields.check_choice(NAME, "feed_forward_proj", kind, tuple(FEED_FORWARD))
  for name, value in FEED_FORWARD[kind].items():
    if config.get(name, value) != value:
      expected = f"{value!r}, which feed_forward_proj = {kind!r} means"
      raise config_fields.unsupported(NAME, name, config[name], expected)
  for name, value in values.items():
    if name == "layer_norm_epsilon":
      config_fields.check_number(NAME, name, value, most=1)
    else:
      config_fields.check_count(NAME, name, value, most=LIMITS.get(name, config_fields.MAX_SIZE))
  buckets = values["relative_attention_num_buckets"]
  if buckets % 4:
    expected = "a multiple of 4: a quarter for near tokens, and as many for far ones, on each side"
    raise config_fields.unsupported(NAME, "relative_attention_num_buckets", buckets, expected)
  distance = values["relative_attention_max_distance"]
  if distance <= buckets // 4:
    expected = f"more than relative_attention_num_buckets / 4 = {buckets // 4}"
    raise config_fields.unsupported(NAME, "relative_attention_max_distance", distance, expected)
  return T5Config(**values, gated=FEED_FORWARD[kind]["is_gated_act"])
