"""Tokenizers checked against the text encoders that read their ids."""

from typing import Any

from dmpo_jax.errors import InputError
from dmpo_jax.interop.tokenizer import LONGEST_CONTEXT


def check(
  tokenizer: Any, encoder: str, *, vocabulary: int, positions: int, length: int | None = None
) -> int:
  """The context length of a text encoder, checked.

  An id past the end of an embedding table is no error in JAX; it reads as NaN or as another row.

  Args:
    tokenizer: The tokenizer of the text encoder; None: not known.
    encoder: Name of the text encoder, for messages.
    vocabulary: Rows of its embedding table.
    positions: Its largest context length.
    length: Context length that captions are padded to; None: the tokenizer's model_max_length.

  Returns:
    The context length; `positions` without a tokenizer.

  Raises:
    InputError: The tokenizer has ids or lengths that the encoder has not, or states no length.
  """
  if tokenizer is None:
    return length or positions
  name = encoder.replace("text_encoder", "tokenizer")
  highest = max(tokenizer.get_vocab().values(), default=0)
  if highest >= vocabulary:
    raise InputError(
      f"{name} has ids up to {highest}, and {encoder} has embeddings of {vocabulary} (vocab_size); "
      "tokens that were added need an encoder that was trained with them"
    )
  length = length or tokenizer.model_max_length
  if length > LONGEST_CONTEXT:
    raise InputError(
      f"{name} states no context length; set model_max_length in its tokenizer_config.json to "
      f"{positions}, the max_position_embeddings of {encoder}"
    )
  if length > positions:
    raise InputError(
      f"{name} pads captions to {length} tokens (model_max_length), and {encoder} has positions "
      f"for {positions} (max_position_embeddings)"
    )
  return length
