"""Entries of the converted pairs, 92 bytes each, from which duplicates and counts are computed."""

import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from dmpo_jax.common import files
from dmpo_jax.common import paths as common_paths
from dmpo_jax.data.convert import paths
from dmpo_jax.data.pairs import Pair

DTYPE = np.dtype(
  [
    ("id", "<u8", 2),  # SHA-256 of the id, its first 16 bytes
    ("content", "<u8", 2),  # SHA-256 of caption, images, label and annotator, its first 16 bytes
    ("prompt", "<u8"),
    ("row", "<u8"),
    ("position", "<u4"),  # in the shard of the chunk and split
    ("tokens", "<u4"),
    ("p0", "<f4"),
    ("weight", "<f4"),
    ("size", "<u2", 4),  # height and width of image_0, of image_1
    ("split", "u1"),
    ("flags", "u1"),
  ]
)
TIE, LONG_CAPTION, SIZE_MISMATCH, REENCODED = 1, 2, 4, 8
PAIRS_AT_A_TIME = 1_000_000  # sorted in memory together: 40 MB
NOTHING = np.zeros(0, np.int64)


def entry(pair: Pair, *, row: int, position: int, tokens: int, split: int, flags: int) -> tuple:
  """The entry of a pair.

  Args:
    pair: The pair.
    row: Number of its row in the table.
    position: Number of its record in the shard.
    tokens: Tokens of its caption.
    split: Number of its split.
    flags: Sum of the constants above that apply.

  Returns:
    The values of `DTYPE`.
  """
  content = hashlib.sha256()
  for part in (
    *(pair.prompt.encode(), pair.image_0, pair.image_1, pair.condition, pair.user_id.encode()),
    repr(pair.p0).encode(),
  ):
    content.update(len(part).to_bytes(8, "little") + part)
  return (
    _two_words(hashlib.sha256(pair.id.encode()).digest()),
    _two_words(content.digest()),
    int(pair.prompt_id[:16], 16),
    row,
    position,
    tokens,
    pair.p0,
    pair.weight,
    (*pair.size_0, *pair.size_1),
    split,
    flags,
  )


def _two_words(digest: bytes) -> tuple[int, int]:
  return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def read(
  working: pathlib.Path, count: int, dropped: np.ndarray = NOTHING
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """The entries of every chunk.

  Args:
    working: The working folder.
    count: Number of chunks.
    dropped: Numbers of the pairs to drop, counted over all chunks, ascending.

  Yields:
    (number of the chunk, its entries `[n]` of `DTYPE`, bool `[n]`: False for dropped pairs).
  """
  start = 0
  for chunk in range(count):
    path = paths.index(working, chunk)
    with files.reading(path, "index", advice="run the same command again"):
      entries = np.load(common_paths.local_copy(path), allow_pickle=False)
      if entries.dtype != DTYPE or entries.ndim != 1:
        raise ValueError(f"it holds {entries.dtype} {entries.shape}")
    kept = np.ones(len(entries), bool)
    low, high = np.searchsorted(dropped, [start, start + len(entries)])
    kept[dropped[low:high] - start] = False
    yield chunk, entries, kept
    start += len(entries)


def duplicates(working: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of the pairs whose id occurred before, and of the others whose content did.

  Args:
    working: The working folder.
    count: Number of chunks.

  Returns:
    Two int64 arrays, ascending, of numbers counted over all chunks.
  """
  slices = _slices(working, count)
  ids = _repeated(working, count, "id", slices, NOTHING)
  return ids, _repeated(working, count, "content", slices, ids)


def count_prompts(
  working: pathlib.Path, count: int, splits: Sequence[str], dropped: np.ndarray
) -> dict[str, int]:
  """Number of different prompts in each split.

  Args:
    working: The working folder.
    count: Number of chunks.
    splits: Names of the splits.
    dropped: See `read`.

  Returns:
    Split -> count.
  """
  slices, prompts = _slices(working, count), Counter()
  for remainder in range(slices):
    keys = []
    for _, entries, kept in read(working, count, dropped):
      selected = entries[kept & (entries["prompt"] % slices == remainder)]
      keys.append(np.stack([selected["split"], selected["prompt"]], axis=1))
    unique = np.unique(np.concatenate(keys), axis=0)
    prompts.update(splits[i] for i in unique[:, 0].tolist())
  return {name: prompts[name] for name in splits}


def _slices(working: pathlib.Path, count: int) -> int:
  """Number of slices by hash, so that the entries of one fit in memory."""
  total = sum(len(entries) for _, entries, _ in read(working, count))
  return max(1, -(-total // PAIRS_AT_A_TIME))


def _repeated(
  working: pathlib.Path, count: int, field: str, slices: int, dropped: np.ndarray
) -> np.ndarray:
  """Numbers of the pairs whose value of a hash field occurred before."""
  repeated = []
  for remainder in range(slices):
    keys, numbers, start = [], [], 0
    for _, entries, kept in read(working, count, dropped):
      selected = kept & (entries[field][:, 0] % slices == remainder)
      keys.append(entries[field][selected])
      numbers.append(start + np.flatnonzero(selected))
      start += len(entries)
    key, number = np.concatenate(keys), np.concatenate(numbers)
    order = np.lexsort((number, key[:, 1], key[:, 0]))
    same = (key[order][1:] == key[order][:-1]).all(axis=1)
    repeated.append(number[order][1:][same])
  return np.sort(np.concatenate(repeated))
