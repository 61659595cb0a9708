"""How long a caption is for CLIP's text encoder."""

import functools
import re
import unicodedata

from dmpo_jax.errors import InputError

CONTEXT = 77  # positions of CLIP's text encoders, start and end token among them
# CLIP's pattern of words, written for Python's re: contractions, letters, single digits, the rest.
# (Python takes \x1c to \x1f for spaces, the tokenizer does not.)
WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|[_\x1c-\x1f])+", re.IGNORECASE)


def least_tokens(caption: str) -> int:
  """A lower bound on the CLIP tokens of a caption: its words, and the start and end token.

  Byte-pair encoding never joins what the pattern of words parts, so each word is at least one
  token. A caption that is too long by this count is too long; some that are may be missed.

  Args:
    caption: The text.

  Returns:
    At least 2.

  Source: `SimpleTokenizer.pat` of openai/CLIP (the pattern).
  """
  return 2 + sum(1 for _ in WORDS.finditer(unicodedata.normalize("NFC", caption)))


@functools.cache
def tokenizer(folder: str):
  """The CLIP tokenizer in a folder, loaded once.

  Args:
    folder: Folder with the tokenizer's files.

  Returns:
    transformers' tokenizer.

  Raises:
    InputError: There is none.
  """
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except (OSError, ValueError) as error:
    raise InputError(f"cannot load a tokenizer from {folder!r}: {error}") from error


def tokens(caption: str, folder: str | None) -> int:
  """Tokens of a caption, start and end among them.

  Args:
    caption: The text.
    folder: Folder of the tokenizer that counts exactly; None counts `least_tokens`.

  Returns:
    The count, not truncated.
  """
  if folder is None:
    return least_tokens(caption)
  return len(tokenizer(folder)(caption, truncation=False, verbose=False)["input_ids"])
