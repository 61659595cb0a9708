"""Folders of pairs, mixed and shuffled: which pair stands where, whatever is stored of it."""

import hashlib
import math
import operator
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from dmpo_jax.data import pair_index
from dmpo_jax.data.loader import check_shares, check_step
from dmpo_jax.data.shuffle import Order, share
from dmpo_jax.errors import InputError, unknown

TIES = ("soft", "drop")
MAX_IDS = 2**32  # an example's id is 32 bits


class Folder:
  """A split of a folder of pairs, and which of them are used.

  Args:
    path: The folder; it has an index of the split.
    split: Name of the split.
    ties: "soft" keeps pairs of which no image is preferred, "drop" leaves them out.
    count: Pairs of the split.
    get: (row, ...) -> what is stored of a pair; any exception says that it is damaged.

  Attributes:
    rows: Numbers of the pairs that are used, int64 `[N]`.
    index: `index.DTYPE` `[N]` of these.

  Raises:
    InputError: The index is damaged, nothing is left, or `ties` is another word.
  """

  def __init__(self, path: str, split: str, ties: str, count: int, get: Callable[..., Any]):
    if ties not in TIES:
      raise unknown("choice for ties", ties, TIES)
    self.path, self.split, self.get = path, split, get
    found = pair_index.read(pathlib.Path(path), split, count)
    keep = np.ones(len(found), bool) if ties == "soft" else found["p0"] != 0.5
    self.rows, self.index = np.flatnonzero(keep), found[keep]
    if not len(self.rows):
      raise InputError(f"split {split!r} of {path} holds ties only, and ties='drop' leaves none")

  def __len__(self) -> int:
    return len(self.rows)

  def read(self, number: int, *more: Any) -> Any:
    """What is stored of the pair with that number among those used; InputError if damaged."""
    try:
      return self.get(int(self.rows[number]), *more)
    except Exception as error:  # ArrayRecord and protocol buffers have errors of their own
      raise self.damaged(number, error) from error

  def damaged(self, number: int, error: Exception) -> InputError:
    """The error that names the record with that number among those that are used."""
    return InputError(
      f"record {self.rows[number]} of split {self.split!r} in {self.path} is damaged: {error}; "
      "copy the folder again or make it anew"
    )


class Mixture:
  """Several folders, each in its share.

  Args:
    folders: The folders, one or more.
    weights: Shares of the examples that come from each of them, > 0.

  Attributes:
    some_uncertain: Whether a label is neither 0 nor 1.
    some_weighted: Whether a weight is not 1.

  Raises:
    InputError: A weight is no share, or there are more pairs than ids.
  """

  def __init__(self, folders: Sequence[Folder], weights: Sequence[float]):
    if not folders or len(folders) != len(weights):
      raise InputError(f"{len(folders)} folders and {len(weights)} weights: give as many of each")
    if not all(w > 0 and math.isfinite(w) for w in weights):
      raise InputError(f"weights of folders must be positive numbers, got {list(weights)}")
    self.folders, self.weights = list(folders), list(weights)
    if len(self) > MAX_IDS:
      raise InputError(f"{len(self)} pairs are more than a run can tell apart ({MAX_IDS})")
    found = [folder.index for folder in folders]
    self.some_uncertain = any(((f["p0"] > 0) & (f["p0"] < 1)).any() for f in found)
    self.some_weighted = any((f["weight"] != 1).any() for f in found)

  def __len__(self) -> int:
    return sum(map(len, self.folders))

  def longer_than(self, context: int) -> int:
    """Captions of more tokens than that, as the conversion counted them."""
    return sum(int(np.count_nonzero(f.index["tokens"] > context)) for f in self.folders)

  def fingerprint(self) -> str:
    """Identifies the pairs that are used by the digests in their indices.

    Returns:
      SHA-256 in hexadecimal; equal for equal pairs in one order, wherever the folders lie.
    """
    digest = hashlib.sha256()
    for folder, weight in zip(self.folders, self.weights, strict=True):
      digest.update(f"{weight!r} {len(folder)} ".encode())
      digest.update(folder.rows.astype("<u8").tobytes() + folder.index.tobytes())
    return digest.hexdigest()


class _Examples:
  """Grain's random-access source of a folder's examples in the order of a run, without end."""

  def __init__(self, mixture: Mixture, number: int, seed: int, read: Callable):
    self.folder = mixture.folders[number]
    self.order = Order(len(self.folder), seed=seed, stream=number)
    self.first_id = sum(map(len, mixture.folders[:number]))
    self.seed, self.read = seed, read

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, place: int) -> Any:
    (row,), (epoch,) = self.order.at(np.array([place]))
    return self.read(self.folder, int(row), int(epoch), self.first_id + int(row))


class FolderLoader:
  """Shuffled batches of pairs from disk, without end, by random access.

  `loader[step]` is a function of (seed, step) and of the folders alone. Folders are mixed by place:
  after n examples each has given its share of n, to within one.

  Args:
    mixture: The folders.
    read: (folder, number among its pairs that are used, epoch, example id) -> an example.
    collate: [examples] -> columns by name, one row an example.
    batch_size: Pairs in a batch over all processes.
    seed: Decides the order.
    process_index: Which part of each batch is given.
    process_count: Into how many parts batches are cut.
    truncated: Captions longer than the tokenizer's context.

  Attributes:
    truncated: As given.

  Raises:
    InputError: A number is out of range.
  """

  def __init__(
    self,
    mixture: Mixture,
    read: Callable[[Folder, int, int, int], Any],
    collate: Callable[[Sequence[Any]], dict[str, np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    truncated: int,
  ):
    self.shares = check_shares(len(mixture), batch_size, seed, process_index, process_count)
    self.collate, self.truncated = collate, truncated
    seed = operator.index(seed)
    sources = [_Examples(mixture, i, seed, read) for i in range(len(mixture.folders))]
    mixed = [grain.MapDataset.source(source) for source in sources]
    self.examples = grain.MapDataset.mix(mixed, mixture.weights) if len(mixed) > 1 else mixed[0]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    places = share(check_step(step), **self.shares)
    return self.collate([self.examples[int(place)] for place in places])

  def iterate(self, start: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches from a step on, without end; threads read what comes next.

    At most two batches are held beside the one that was asked for.
    """
    each = self.shares["batch_size"] // self.shares["process_count"]
    places = grain.MapDataset.source(_Places(start, self.shares))
    options = grain.ReadOptions(
      num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * each
    )
    examples = places.map(lambda place: self.examples[place]).to_iter_dataset(options)
    return iter(examples.batch(each, batch_fn=self.collate))


class _Places:
  """The places of this process's examples, from a step on."""

  def __init__(self, start: int, shares: dict[str, int]):
    self.start, self.shares = start, shares
    self.each = shares["batch_size"] // shares["process_count"]

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, number: int) -> int:
    step, place = divmod(int(number), self.each)
    return int(share(self.start + step, **self.shares)[place])
