"""Metadata of the pairs of a split, 28 bytes each, which a run loads before any record."""

import hashlib
from collections.abc import Mapping

import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.errors import InputError

DTYPE = np.dtype(
  [
    ("content", "<u8", 2),  # SHA-256 of caption, images, label and annotator, its first 16 bytes
    ("p0", "<f4"),
    ("weight", "<f4"),
    ("tokens", "<u4"),
  ]
)

HEADER_BYTES = 4096  # more than the header of the file has


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


def check(folder: paths.Path, digests: Mapping[str, str], advice: str) -> None:
  """Checks that indices are as they were written.

  Args:
    folder: See `read`.
    digests: Split -> SHA-256 of its index in hexadecimal; folders of earlier versions have none.
    advice: What the user can do about a damaged one.

  Raises:
    InputError: One is missing or damaged.
  """
  for split, expected in digests.items():
    path = paths.parse(folder) / name(split)
    if not files.is_file(path) or digest(path) != expected:
      raise InputError(f"{path} is missing or damaged; {advice}")


def digest(path: paths.Path) -> str:
  """SHA-256 of an index in hexadecimal."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def read(folder: paths.Path, split: str, count: int) -> np.ndarray:
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
  path = paths.parse(folder) / name(split)
  with files.reading(path, "index of pairs", advice="copy it again or convert again"):
    if paths.size(path) > count * DTYPE.itemsize + HEADER_BYTES:
      raise ValueError(f"it is too large for {count} pairs")
    index = np.load(paths.local_copy(path), allow_pickle=False)
    if index.dtype != DTYPE or index.shape != (count,):
      raise ValueError(f"it holds {index.dtype} {index.shape}, not the index of {count} pairs")
    if not ((index["p0"] >= 0) & (index["p0"] <= 1)).all():
      raise ValueError("a probability is not in [0, 1]")
    if not ((index["weight"] > 0) & np.isfinite(index["weight"])).all():
      raise ValueError("a weight is not positive and finite")
  return index
