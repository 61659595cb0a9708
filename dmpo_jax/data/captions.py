"""Length of captions in tokens of CLIP's text encoder."""

import functools
import re
import unicodedata

from dmpo_jax.common import files, paths
from dmpo_jax.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
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
  text = unicodedata.normalize("NFC", caption)
  # A newer version of Unicode may say that what Python does not know belongs to a word.
  text = "".join(c for c in text if unicodedata.category(c) != "Cn")
  return 2 + sum(1 for _ in WORDS.finditer(text))


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
  from transformers import CLIPTokenizer

  path = paths.local_copy(folder)
  present = [name for name in TOKENIZER_FILES if (path / name).is_file()]
  if not {"tokenizer.json", "vocab.json"} & set(present):
    inner = " (its folder tokenizer does)" if (path / "tokenizer").is_dir() else ""
    raise InputError(
      f"{folder} holds no CLIP tokenizer{inner}: tokenizer.json, or vocab.json and merges.txt"
    )
  for name in present:
    files.read_json(path / name)
  # Its own class: AutoTokenizer would offer to run a class that the folder brings along.
  with files.reading(path, "CLIP tokenizer", advice="give the folder of another one"):
    # tokenizer_config.json may name files anywhere, which these arguments replace.
    own = {
      argument: str(path / name) if (path / name).is_file() else None
      for argument, name in CLIPTokenizer.vocab_files_names.items()
    }
    loaded = CLIPTokenizer.from_pretrained(
      path, local_files_only=True, trust_remote_code=False, **own
    )
    loaded("a", truncation=False, verbose=False)
  return loaded


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
  with files.reading(folder, "CLIP tokenizer", advice="give the folder of another one"):
    return len(tokenizer(folder)(caption, truncation=False, verbose=False)["input_ids"])
