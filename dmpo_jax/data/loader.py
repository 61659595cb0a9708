"""Loaders of shuffled batches. The batch of a step depends on the seed and the step alone."""

import itertools
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from dmpo_jax.data.mixture import Mixture, Read
from dmpo_jax.data.shuffle import Shuffle
from dmpo_jax.errors import InputError

# Name -> array [N, ...], or a dict of such arrays.
Columns = Mapping[str, Any]


class Batching(NamedTuple):
  """Division of a sequence of examples into batches, and of a batch over processes.

  Attributes:
    batch_size: Examples of a batch over all processes.
    process_index: Number of this process.
    process_count: Number of processes; it divides the batch size.
  """

  batch_size: int
  process_index: int = 0
  process_count: int = 1

  @property
  def per_process(self) -> int:
    """Examples of a batch that this process loads."""
    return self.batch_size // self.process_count

  def positions(self, step: int) -> np.ndarray:
    """Positions of this process's examples of a step, int64 `[per_process]`.

    Concatenated in the order of the processes they are the positions of the batch.
    """
    first = step * self.batch_size + self.process_index * self.per_process
    return first + np.arange(self.per_process)


class Loader:
  """Endless shuffled batches of arrays in memory, by random access.

  `loader[step]` holds `batch_size` rows of each array and is a pure function of (seed, step), so
  that no state is needed to resume. Each epoch holds all rows in a new random order; a batch may
  span the border of two epochs.

  Args:
    arrays: Arrays of one length N >= 1 by name, `[N, ...]`, or dicts of such arrays by name.
    batch_size: Rows of a batch over all processes, 1 to N.
    seed: Seed of the order, 0 to 2⁶⁴ - 1.
    process_index: Number of this process; batches hold its part alone.
    process_count: Number of processes that share a batch in equal parts.
    truncated: Number of captions that the tokenizer truncated.

  Attributes:
    batches: The same batches as grain's MapDataset.
    truncated: As given.

  Raises:
    InputError: There is no array or no row, lengths differ, or a number is out of range.
  """

  def __init__(
    self,
    arrays: Columns,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    truncated: int = 0,
  ):
    self.arrays, lengths = _map(np.asarray, arrays), {}
    _map(lambda a: lengths.setdefault(len(a) if a.ndim else None, a.shape), self.arrays)
    if len(lengths) != 1 or None in lengths:
      shapes = _map(np.shape, self.arrays)
      raise InputError(f"the loader takes arrays [N, ...] of one length N, got shapes {shapes}")
    (count,) = lengths
    self.batching = check_batching(count, batch_size, seed, process_index, process_count)
    self.shuffle = Shuffle(count, seed=operator.index(seed))
    # Whole batches: grain's shuffle and bookkeeping take 45 microseconds per item, longer than a
    # small image takes.
    self.batches = grain.MapDataset.range(sys.maxsize).map(self._batch)
    self.truncated = truncated

  def __getitem__(self, step: int) -> Columns:
    return self._batch(check_step(step))

  def iterate(self, start: int) -> Iterator[Columns]:
    """The batches from step `start` on, without end."""
    return (self[step] for step in itertools.count(start))

  def _batch(self, step: int) -> Columns:
    rows, _ = self.shuffle.at(self.batching.positions(int(step)))
    return _map(lambda array: array[rows], self.arrays)


class FolderLoader:
  """Endless shuffled batches of pairs on disk, by random access.

  `loader[step]` is a pure function of (seed, step) and of the folders.

  Args:
    mixture: The folders.
    read: Reads an example, see `Mixture.examples`.
    collate: [examples] -> arrays by name, with one row per example.
    batch_size: Pairs of a batch over all processes.
    seed: Seed of the order.
    process_index: Number of this process; batches hold its part alone.
    process_count: Number of processes that share a batch in equal parts.
    truncated: Number of captions that the tokenizer truncates.

  Attributes:
    truncated: As given.

  Raises:
    InputError: A number is out of range.
  """

  def __init__(
    self,
    mixture: Mixture,
    read: Read,
    collate: Callable[[Sequence[Any]], Columns],
    *,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    truncated: int,
  ):
    self.batching = check_batching(len(mixture), batch_size, seed, process_index, process_count)
    self.examples = mixture.examples(operator.index(seed), read)
    self.collate, self.truncated = collate, truncated

  def __getitem__(self, step: int) -> Columns:
    positions = self.batching.positions(check_step(step))
    return self.collate([self.examples[int(position)] for position in positions])

  def iterate(self, start: int) -> Iterator[Columns]:
    """The batches from step `start` on, without end; threads read ahead.

    At most two batches are in memory beside the one that is returned.
    """
    size = self.batching.per_process

    def example(number: int) -> Any:
      step, i = divmod(int(number), size)
      return self.examples[int(self.batching.positions(start + step)[i])]

    options = grain.ReadOptions(
      num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * size
    )
    examples = grain.MapDataset.range(sys.maxsize).map(example).to_iter_dataset(options)
    return iter(examples.batch(size, batch_fn=self.collate))


def _map(function: Callable, columns: Any) -> Any:
  if isinstance(columns, Mapping):
    return {name: _map(function, column) for name, column in columns.items()}
  return function(columns)


def check_step(step: int) -> int:
  """Returns the step if it is an integer >= 0; raises InputError otherwise."""
  if operator.index(step) < 0:
    raise InputError(f"steps count from 0, got {step}")
  return operator.index(step)


def check_batching(
  count: int, batch_size: int, seed: int, process_index: int, process_count: int
) -> Batching:
  """Checks the arguments of a loader.

  Args:
    count: Rows of the data set.
    batch_size: Rows of a batch.
    seed: Seed of the order.
    process_index: Number of this process.
    process_count: Number of processes.

  Returns:
    `Batching`.

  Raises:
    InputError: A number is out of range.
  """
  if count == 0:
    raise InputError("the data set is empty: there is nothing to make a batch of")
  if not 1 <= operator.index(batch_size) <= count:
    raise InputError(
      f"batch_size {batch_size} does not fit a data set of {count} rows; "
      f"choose 1 to {count}, or give more data"
    )
  if not 0 <= operator.index(seed) < 2**64:
    raise InputError(f"seed must be an integer from 0 to 2**64 - 1, got {seed}")
  if not 0 <= operator.index(process_index) < operator.index(process_count):
    raise InputError(f"process {process_index} of {process_count}: processes count from 0")
  if batch_size % process_count:
    raise InputError(
      f"batch_size {batch_size} does not divide over {process_count} processes; change it"
    )
  return Batching(*map(operator.index, (batch_size, process_index, process_count)))
