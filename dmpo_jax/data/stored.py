"""Pairs that training reads from disk: converted folders, mixed, shuffled and decoded as they come.

The first image of an example is the one more probably preferred: images are swapped where p0 < 1/2,
and the label is max(p0, 1 - p0). A tie keeps the order of its record and has the label 1/2.
"""

import functools
import hashlib
import math
import operator
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from dmpo_jax.data import augment, builder, index
from dmpo_jax.data.loader import check_shares, check_step
from dmpo_jax.data.order import Order, share
from dmpo_jax.errors import InputError, unknown

TIES = ("soft", "drop")
MAX_IDS = 2**32  # an example's id is 32 bits

# [captions] -> (columns of token ids by name, int32 [N, L] each; how many captions were cut)
Tokenize = Callable[[Sequence[str]], tuple[dict[str, np.ndarray], int]]


class Folder:
  """A split of a converted folder, and which of its pairs are used.

  Args:
    path: What `data convert` wrote.
    split: Name of the split.
    ties: "soft" keeps pairs of which no image is preferred, "drop" leaves them out.

  Attributes:
    rows: Numbers of the records that are used, int64 `[N]`.
    index: `index.DTYPE` `[N]` of these.

  Raises:
    InputError: The folder is damaged or no finished conversion, or nothing is left.
  """

  def __init__(self, path: str, split: str, ties: str):
    self.path, self.split = path, split
    self.source = builder.PairSource(pathlib.Path(path), split)
    found = index.read(pathlib.Path(path), split, len(self.source))
    keep = np.ones(len(found), bool) if ties == "soft" else found["p0"] != 0.5
    self.rows, self.index = np.flatnonzero(keep), found[keep]
    if not len(self.rows):
      raise InputError(f"split {split!r} of {path} holds ties only, and ties='drop' leaves none")

  def __len__(self) -> int:
    return len(self.rows)

  def pair(self, number: int):
    """The pair with that number among those that are used; InputError if it is damaged."""
    try:
      return self.source[int(self.rows[number])]
    except Exception as error:  # ArrayRecord and protocol buffers have errors of their own
      raise self.damaged(number, error) from error

  def damaged(self, number: int, error: Exception) -> InputError:
    """The error that names the record with that number among those that are used."""
    return InputError(
      f"record {self.rows[number]} of split {self.split!r} in {self.path} is damaged: {error}; "
      "copy the folder again or convert anew"
    )


class StoredPairs:
  """Pairs in one or more converted folders.

  Args:
    folders: The folders.
    weights: Shares of the examples that come from each of them, > 0.
    split: Which split of each.
    size: Side of the square images in pixels.
    crop: "center" or "random", see `augment.draw`.
    flip: Whether half of the views are flipped.
    ties: "soft" or "drop", see `Folder`.
    time_ids: Whether examples tell sizes and crops, as SDXL asks for them.

  Raises:
    InputError: A folder cannot be used or an option does not exist.
  """

  def __init__(
    self,
    folders: Sequence[str],
    weights: Sequence[float],
    *,
    split: str,
    size: int,
    crop: str,
    flip: bool,
    ties: str,
    time_ids: bool,
  ):
    if not folders or len(folders) != len(weights):
      raise InputError(f"{len(folders)} folders and {len(weights)} weights: give as many of each")
    if not all(w > 0 and math.isfinite(w) for w in weights):
      raise InputError(f"weights of folders must be positive numbers, got {list(weights)}")
    if ties not in TIES:
      raise unknown("choice for ties", ties, TIES)
    augment.check(size=size, crop=crop, channels=3)
    self.folders, self.weights = [Folder(f, split, ties) for f in folders], list(weights)
    if len(self) > MAX_IDS:
      raise InputError(f"{len(self)} pairs are more than a run can tell apart ({MAX_IDS})")
    self.size, self.time_ids = size, time_ids
    self.view = functools.partial(augment.draw, crop=crop, flip=flip)

  def __len__(self) -> int:
    return sum(map(len, self.folders))

  @property
  def captions(self) -> list[str]:
    """All captions; reads every record once (only a vocabulary made of them needs it)."""
    return [f.pair(i).prompt for f in self.folders for i in range(len(f))]

  def fingerprint(self) -> str:
    """Identifies the pairs that are used by the digests in their indices, the images unread.

    Returns:
      SHA-256 in hexadecimal; equal for equal pairs in one order, wherever the folders lie.
    """
    digest = hashlib.sha256()
    for folder, weight in zip(self.folders, self.weights, strict=True):
      digest.update(f"{weight!r} {len(folder)} ".encode())
      digest.update(folder.rows.astype("<u8").tobytes() + folder.index.tobytes())
    return digest.hexdigest()

  def loader(
    self,
    tokenize: Tokenize,
    *,
    channels: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ) -> "StoredLoader":
    """Batches for a pipeline.

    Args:
      tokenize: Captions to token ids.
      channels: Of the images that the pipeline takes: 3, or 1 (luma).
      batch_size: Pairs in a batch over all processes.
      seed: Decides order and views.
      process_index: Which part of each batch is given.
      process_count: Into how many parts batches are cut.

    Returns:
      `StoredLoader`.

    Raises:
      InputError: A number is out of range.
    """
    augment.check(size=self.size, crop="center", channels=channels)
    shares = check_shares(len(self), batch_size, seed, process_index, process_count)
    return StoredLoader(self, tokenize, channels, operator.index(seed), shares)


class _Example(NamedTuple):
  """A decoded pair; fields as the columns of `StoredLoader`."""

  images: tuple[np.ndarray, np.ndarray]
  caption: str
  example_id: int
  label: float
  weight: float
  time_ids: tuple[int, ...]


class _Examples:
  """Grain's random-access source of a folder's examples in the order of a run, without end."""

  def __init__(self, pairs: StoredPairs, number: int, seed: int, channels: int):
    self.pairs, self.folder = pairs, pairs.folders[number]
    self.order = Order(len(self.folder), seed=seed, stream=number)
    self.first_id = sum(map(len, pairs.folders[:number]))
    self.seed, self.channels = seed, channels

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, place: int) -> _Example:
    (row,), (epoch,) = self.order.at(np.array([place]))
    example_id, pair = self.first_id + int(row), self.folder.pair(row)
    view = self.pairs.view(self.seed, int(epoch), example_id)
    look = functools.partial(augment.look, size=self.pairs.size, channels=self.channels)
    try:
      seen = [look(encoded, view) for encoded in (pair.image_0, pair.image_1)]
    except InputError as error:
      raise self.folder.damaged(row, error) from error
    swap = -1 if pair.p0 < 0.5 else 1
    return _Example(
      images=tuple(pixels for pixels, _ in seen[::swap]),
      caption=pair.prompt,
      example_id=example_id,
      label=max(pair.p0, 1 - pair.p0),
      weight=pair.weight,
      # Which image is stored first says nothing about which is preferred.
      time_ids=(*seen[0][1], self.pairs.size, self.pairs.size),
    )


class StoredLoader:
  """Shuffled batches of pairs from disk, without end, by random access.

  `loader[step]` is a function of (seed, step) and of the folders alone. Its columns, P rows each:
  images float32 `[P, 2, H, W, C]` in [-1, 1]; those of the tokenizer; example_id uint32; label
  float32, left out where every pair is certain; weight float32, left out where all are 1; where
  asked for, time_ids float32 `[P, 6]`: original height and width, top and left of the crop in the
  scaled image, height and width of the result, all of image_0 of the record.

  Folders are mixed by place: after n examples each has given its share of n, to within one.

  Attributes:
    truncated: Captions longer than the tokenizer's context, as the conversion counted them: exactly
      if it was given a tokenizer, else those that are too long by their number of words alone.
  """

  def __init__(
    self, pairs: StoredPairs, tokenize: Tokenize, channels: int, seed: int, shares: dict[str, int]
  ):
    self.pairs, self.tokenize, self.shares = pairs, tokenize, shares
    sources = [_Examples(pairs, i, seed, channels) for i in range(len(pairs.folders))]
    mixed = [grain.MapDataset.source(source) for source in sources]
    self.examples = grain.MapDataset.mix(mixed, pairs.weights) if len(mixed) > 1 else mixed[0]
    longest = max(ids.shape[1] for ids in tokenize([""])[0].values())
    found = [folder.index for folder in pairs.folders]
    self.truncated = sum(int(np.count_nonzero(f["tokens"] > longest)) for f in found)
    self.columns = {
      "label": any(((f["p0"] > 0) & (f["p0"] < 1)).any() for f in found),
      "weight": any((f["weight"] != 1).any() for f in found),
      "time_ids": pairs.time_ids,
    }

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    places = share(check_step(step), **self.shares)
    return self._batch([self.examples[int(place)] for place in places])

  def iterate(self, start: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches from a step on, without end; threads decode what comes next.

    At most two batches are held beside the one that was asked for.
    """
    each = self.shares["batch_size"] // self.shares["process_count"]
    places = grain.MapDataset.source(_Places(start, self.shares))
    options = grain.ReadOptions(
      num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * each
    )
    examples = places.map(lambda place: self.examples[place]).to_iter_dataset(options)
    return iter(examples.batch(each, batch_fn=self._batch))

  def _batch(self, examples: Sequence[_Example]) -> dict[str, np.ndarray]:
    column = {name: [getattr(e, name) for e in examples] for name in _Example._fields}
    batch = {"images": augment.stack(column["images"]), **self.tokenize(column["caption"])[0]}
    batch["example_id"] = np.array(column["example_id"], np.uint32)
    for name, there in self.columns.items():
      if there:
        batch[name] = np.array(column[name], np.float32)
    return batch


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
