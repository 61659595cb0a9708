"""Pairs of several folders, shuffled and mixed: the order of the examples, whatever they hold."""

import functools
import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.data import pair_index
from dmpo_jax.data.shuffle import Shuffle
from dmpo_jax.errors import InputError, unknown

TIES = ("soft", "drop")
LEAST_FRACTION = 1e-6  # of the examples that a folder of a mixture may have
MAX_IDS = 2**32  # an example id has 32 bits


class FolderSplit:
  """A split of a folder of pairs, and the selection of its pairs that a run uses.

  Args:
    path: The folder, which holds a pair index of the split.
    split: Name of the split.
    ties: "soft" selects all pairs, "drop" those that are no ties.
    count: Pairs of the split.
    get: (record number, ...) -> the stored pair. Any exception of it means a damaged record.

  Attributes:
    path: As given.
    split: As given.
    records: Record numbers of the selected pairs, int64 `[N]`.
    index: Metadata of the selected pairs, `[N]` of `pair_index.DTYPE`.

  Raises:
    InputError: The index is damaged, no pair is selected, or `ties` is unknown.
  """

  def __init__(self, path: str, split: str, ties: str, count: int, get: Callable[..., Any]):
    if ties not in TIES:
      raise unknown("choice for ties", ties, TIES)
    self.path, self.split, self.get = path, split, get
    index = pair_index.read(paths.parse(path), split, count)
    selected = np.ones(len(index), bool) if ties == "soft" else index["p0"] != 0.5
    self.records, self.index = np.flatnonzero(selected), index[selected]
    if not len(self.records):
      raise InputError(f"split {split!r} of {path} holds ties only, and ties='drop' leaves none")

  def __len__(self) -> int:
    return len(self.records)

  def read(self, row: int, *arguments: Any) -> Any:
    """Reads a pair.

    Args:
      row: Number of the pair among the selected ones.
      *arguments: Further arguments of `get`.

    Returns:
      The stored pair.

    Raises:
      InputError: The record is damaged.
    """
    try:
      return self.get(int(self.records[row]), *arguments)
    except Exception as error:  # ArrayRecord and protocol buffers have their own exceptions
      raise self.damaged(row, error) from error

  def damaged(self, row: int, error: Exception) -> InputError:
    """The error of a damaged record, which names it."""
    return InputError(
      f"record {self.records[row]} of split {self.split!r} in {self.path} is damaged: {error}; "
      "copy the folder again or write it again"
    )

  def check_source(self, row: int, source: bytes, expected: bool) -> None:
    """Raises InputError unless a record has a source image where the others do, and only there."""
    if bool(source) != expected:
      raise InputError(
        f"record {self.records[row]} of split {self.split!r} in {self.path} has "
        f"{'a' if source else 'no'} source image, and others have {'one' if expected else 'none'}; "
        "convert edits and other pairs into folders of their own"
      )

  def lacks(self, row: int, name: str) -> InputError:
    """The error of a record without the "seeds" or "scores" of its images."""
    return InputError(
      f"record {self.records[row]} of split {self.split!r} in {self.path} has no {name} of its "
      f"images; leave the option out, or convert pairs that have them (columns {name[:-1]}_0 and "
      f"{name[:-1]}_1)"
    )


def have_sources(folders: Sequence[FolderSplit]) -> bool:
  """Whether converted pairs are edits of source images, by the first record of each folder.

  Raises:
    InputError: The folders differ.
  """
  edits = [bool(folder.read(0).condition) for folder in folders]
  if len(set(edits)) > 1:
    paths = [folder.path for folder in folders]
    raise InputError(
      f"{paths[edits.index(True)]} holds edits of source images, {paths[edits.index(False)]} does "
      "not; mix folders of one kind, or set drop_sources=True"
    )
  return edits[0]


# (folder, row among its selected pairs, epoch, example id) -> example
Read = Callable[[FolderSplit, int, int, int], Any]


class Mixture:
  """Several folders, each with its fraction of the examples.

  Args:
    folders: The folders, at least one.
    weights: Relative frequency of the examples of each folder, > 0.

  Attributes:
    some_uncertain: Whether a label is neither 0 nor 1.
    some_weighted: Whether a weight is not 1.

  Raises:
    InputError: A weight is not positive, or there are more pairs than ids.
  """

  def __init__(self, folders: Sequence[FolderSplit], weights: Sequence[float]):
    if not folders or len(folders) != len(weights):
      raise InputError(f"{len(folders)} folders and {len(weights)} weights: give as many of each")
    if not all(w > 0 and math.isfinite(w) for w in weights):
      raise InputError(f"weights of folders must be positive numbers, got {list(weights)}")
    for folder, weight in zip(folders, weights, strict=True):
      if not weight / sum(weights) >= LEAST_FRACTION:
        raise InputError(
          f"the weight {weight:g} of {folder.path} gives it less than {LEAST_FRACTION:g} of the "
          f"examples beside {list(weights)}; leave the folder out, or raise the weight"
        )
    self.folders, self.weights = list(folders), list(weights)
    if len(self) > MAX_IDS:
      raise InputError(f"{len(self)} pairs are more than there are example ids ({MAX_IDS})")
    indices = [folder.index for folder in folders]
    self.some_uncertain = any(((i["p0"] > 0) & (i["p0"] < 1)).any() for i in indices)
    self.some_weighted = any((i["weight"] != 1).any() for i in indices)

  def __len__(self) -> int:
    return sum(map(len, self.folders))

  def examples(self, seed: int, read: Read) -> grain.MapDataset:
    """The endless sequence of examples of a run, by random access.

    The order is the contract by which a run resumes. Among any n first examples each folder has its
    fraction of n, to within one.

    Args:
      seed: Seed of the order.
      read: Reads an example of (folder, row among its selected pairs, epoch, example id).

    Returns:
      grain's MapDataset; `[position]` is an example.
    """
    datasets, first_id = [], 0
    for dataset_id, folder in enumerate(self.folders):
      shuffle = Shuffle(len(folder), seed=seed, dataset_id=dataset_id)
      example = functools.partial(_example, folder, shuffle, first_id, read)
      datasets.append(grain.MapDataset.range(sys.maxsize).map(example))
      first_id += len(folder)
    return grain.MapDataset.mix(datasets, self.weights) if len(datasets) > 1 else datasets[0]

  def captions_longer_than(self, tokens: int) -> int:
    """Number of captions of more tokens, as the conversion counted them."""
    return sum(int(np.count_nonzero(f.index["tokens"] > tokens)) for f in self.folders)

  def fingerprint(self) -> str:
    """Fingerprint of the selected pairs, computed from the hashes in the pair indices.

    Returns:
      SHA-256 in hexadecimal; equal for equal pairs in one order, in any folder.
    """
    digest = hashlib.sha256()
    for folder, weight in zip(self.folders, self.weights, strict=True):
      digest.update(f"{weight!r} {len(folder)} ".encode())
      digest.update(folder.records.astype("<u8").tobytes() + folder.index.tobytes())
    return digest.hexdigest()


def _example(folder: FolderSplit, shuffle: Shuffle, first_id: int, read: Read, position: int):
  (row,), (epoch,) = shuffle.at(np.array([position]))
  return read(folder, int(row), int(epoch), first_id + int(row))


def folders_and_weights(
  folder: str, folders: Sequence[str], weights: Sequence[float]
) -> tuple[list[str], list[float]]:
  """The folders and weights of a data set's options: `folder`, or `folders` and `weights`.

  Raises:
    InputError: Both are given, or neither.
  """
  if bool(folder) == bool(folders):
    raise InputError("a data set needs either `folder`, or `folders` and `weights`")
  if folder and weights:
    raise InputError("`weights` belong to `folders`; leave them out with a single `folder`")
  return ([folder], [1.0]) if folder else (list(folders), list(weights))
