"""The config of CLIP's text encoders: transformers' fields and defaults."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from dmpo_jax.models import config_fields

NAME = "CLIPTextModel"
WITH_PROJECTION = "CLIPTextModelWithProjection"

DEFAULTS = {
  "vocab_size": 49408,
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "max_position_embeddings": 77,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "eos_token_id": 49407,
  "projection_dim": 512,
}

DROPOUTS = ("attention_dropout", "dropout")

CONSTANTS = {
  "add_cross_attention": False,
  "is_decoder": False,
  "is_encoder_decoder": False,
  "chunk_size_feed_forward": 0,
  "cross_attention_hidden_size": None,
  "pruned_heads": {},
  "tie_encoder_decoder": False,
}

# Fields of identity, initialisation, generation and output format, which no arithmetic depends on.
# Files of former versions of transformers have all of them.
IGNORED = frozenset(
  {
    "architectures",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
  }
)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
  """The fields that shape the network; `projection_dim` is None without a projection."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  max_position_embeddings: int
  hidden_act: str
  layer_norm_eps: float
  eos_token_id: int
  projection_dim: int | None


def read(config: Mapping[str, Any]) -> CLIPTextConfig:
  """Reads transformers' config.json of a CLIPTextModel or CLIPTextModelWithProjection.

  Args:
    config: Its fields; absent ones have transformers' defaults. `architectures` names the class. A
      CLIPTextModel ignores `projection_dim`.

  Returns:
    A `CLIPTextConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: transformers' CLIPTextConfig, CLIPTextModel and CLIPTextModelWithProjection (5.23).
  """
  name = WITH_PROJECTION if WITH_PROJECTION in config_fields.class_names(config) else NAME
  values = config_fields.read(
    name, config, defaults=DEFAULTS, constants=CONSTANTS, ignored=IGNORED, dropouts=DROPOUTS
  )
  if name == NAME:
    values["projection_dim"] = None
  end = values["eos_token_id"]
  if isinstance(end, bool) or not isinstance(end, int):
    raise config_fields.unsupported(name, "eos_token_id", end, "an integer")
  counts = ("vocab_size", "max_position_embeddings")
  check_layers(name, values, counts if name == NAME else (*counts, "projection_dim"))
  return CLIPTextConfig(**values)


def check_layers(name: str, values: Mapping[str, Any], counts: Iterable[str]) -> None:
  """Raises InputError unless values describe an encoder's layers, and `counts` are positive."""
  config_fields.check_choice(name, "hidden_act", values["hidden_act"], ("quick_gelu", "gelu"))
  config_fields.check_number(name, "layer_norm_eps", values["layer_norm_eps"], most=1)
  layers = values["num_hidden_layers"]
  config_fields.check_count(name, "num_hidden_layers", layers, most=config_fields.MAX_LAYERS)
  for field in ("hidden_size", "intermediate_size", "num_attention_heads", *counts):
    config_fields.check_count(name, field, values[field])
  heads, width = values["num_attention_heads"], values["hidden_size"]
  if width % heads:
    expected = f"a divisor of hidden_size = {width}"
    raise config_fields.unsupported(name, "num_attention_heads", heads, expected)
