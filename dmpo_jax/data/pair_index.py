"""What of each pair a run must know before it reads any: 28 bytes a pair, in a file per split."""

import pathlib
import tokenize

import numpy as np

from dmpo_jax.errors import InputError

DTYPE = np.dtype(
  [
    ("content", "<u8", 2),  # SHA-256 of caption, images, label and judge, its first 16 bytes
    ("p0", "<f4"),
    ("weight", "<f4"),
    ("tokens", "<u4"),
  ]
)


def name(split: str) -> str:
  """Name of a split's index; TFDS takes no notice of it."""
  return f"index-{split}.npy"


def select(entries: np.ndarray) -> np.ndarray:
  """The fields of an index among those that a conversion keeps.

  Args:
    entries: `[N]` of `convert_piece.INDEX`.

  Returns:
    `[N]` of `DTYPE`.
  """
  found = np.empty(len(entries), DTYPE)
  for field in DTYPE.names:
    found[field] = entries[field]
  return found


def read(folder: pathlib.Path, split: str, count: int) -> np.ndarray:
  """The index of a split.

  Args:
    folder: What `data convert` wrote.
    split: Name of the split.
    count: Its pairs.

  Returns:
    `[count]` of `DTYPE`, in the order of the records.

  Raises:
    InputError: It is missing, damaged, or of another number of pairs.
  """
  path = pathlib.Path(folder) / name(split)
  try:
    found = np.load(path, allow_pickle=False)  # which reads the header with Python's tokenizer
  except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
    raise InputError(f"cannot read {path}: {error}; copy it again or convert anew") from error
  if found.dtype != DTYPE or found.shape != (count,):
    raise InputError(
      f"{path} holds {found.dtype} {found.shape}, not the index of {count} pairs; "
      "copy it again or convert anew"
    )
  return found
