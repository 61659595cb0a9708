"""Metadata of the pairs of a split, 28 bytes each, which a run loads before any record."""

import pathlib
import tokenize

import numpy as np

from dmpo_jax.errors import InputError

DTYPE = np.dtype(
  [
    ("content", "<u8", 2),  # SHA-256 of caption, images, label and annotator, its first 16 bytes
    ("p0", "<f4"),
    ("weight", "<f4"),
    ("tokens", "<u4"),
  ]
)


def name(split: str) -> str:
  """Name of the file of a split; TFDS ignores it."""
  return f"index-{split}.npy"


def select(entries: np.ndarray) -> np.ndarray:
  """The fields of `DTYPE` in entries of a conversion.

  Args:
    entries: `[N]` of `chunk_index.DTYPE`.

  Returns:
    `[N]` of `DTYPE`.
  """
  index = np.empty(len(entries), DTYPE)
  for field in DTYPE.names:
    index[field] = entries[field]
  return index


def read(folder: pathlib.Path, split: str, count: int) -> np.ndarray:
  """Reads the index of a split.

  Args:
    folder: A folder that `data convert` or `data cache-latents` wrote.
    split: Name of the split.
    count: Number of pairs of the split.

  Returns:
    `[count]` of `DTYPE`, in the order of the records.

  Raises:
    InputError: The file is missing, damaged, or of another number of pairs.
  """
  path = pathlib.Path(folder) / name(split)
  try:
    index = np.load(path, allow_pickle=False)  # parses the header with Python's tokenizer
  except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
    raise InputError(f"cannot read {path}: {error}; copy it again or convert again") from error
  if index.dtype != DTYPE or index.shape != (count,):
    raise InputError(
      f"{path} holds {index.dtype} {index.shape}, not the index of {count} pairs; "
      "copy it again or convert again"
    )
  return index
