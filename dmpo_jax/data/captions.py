"""Length of captions in tokens of CLIP's text encoder."""

import functools
import re
import unicodedata

from dmpo_jax.errors import InputError

CONTEXT = 77  # positions of CLIP's text encoders, start and end token among them
# CLIP's pattern of words for Python's re: contractions, letters, single digits, others.
# (\x1c to \x1f are spaces in Python, but not in the tokenizer.)
WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|[_\x1c-\x1f])+", re.IGNORECASE)


def least_tokens(caption: str) -> int:
  """A lower bound on the CLIP tokens of a caption: its words, and the start and end token.

  Byte-pair encoding never joins two words, so each word is at least one token. Every caption that
  is too long by this count is too long; some long captions are missed.

  Args:
    caption: The text.

  Returns:
    At least 2.

  Source: `SimpleTokenizer.pat` of openai/CLIP (the pattern).
  """
  return 2 + sum(1 for _ in WORDS.finditer(unicodedata.normalize("NFC", caption)))


@functools.cache
def tokenizer(folder: str):
  """Loads the CLIP tokenizer in a folder, once per process.

  Args:
    folder: Folder with the tokenizer's files.

  Returns:
    transformers' tokenizer.

  Raises:
    InputError: The folder holds no tokenizer.
  """
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except (OSError, ValueError) as error:
    raise InputError(f"cannot load a tokenizer from {folder!r}: {error}") from error


def tokens(caption: str, folder: str | None) -> int:
  """Number of tokens of a caption, start and end token included.

  Args:
    caption: The text.
    folder: Folder of a tokenizer for an exact count; None returns `least_tokens`.

  Returns:
    The count before truncation.
  """
  if folder is None:
    return least_tokens(caption)
  return len(tokenizer(folder)(caption, truncation=False, verbose=False)["input_ids"])
