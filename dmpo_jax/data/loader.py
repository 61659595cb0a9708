"""Batches by step number: what a run sees at a step depends on the seed and the step alone."""

import itertools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from dmpo_jax.data.shuffle import Order, share
from dmpo_jax.errors import InputError

# Name -> array [N, ...], or a dict of such arrays.
Columns = Mapping[str, Any]


class _Batches:
  """Grain's random-access source whose item number `step` is the batch of that step.

  Whole batches are gathered here and not item by item in grain: its shuffle and bookkeeping take
  45 microseconds an item, more than a small image is worth.
  """

  def __init__(self, arrays: Columns, order: Order, shares: dict[str, int]):
    self.arrays, self.order, self.shares = arrays, order, shares

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, step: int) -> Columns:
    rows, _ = self.order.at(share(int(step), **self.shares))
    return _map(lambda array: array[rows], self.arrays)


class Loader:
  """Shuffled batches of parallel arrays, without end, by random access.

  `loader[step]` is a dict with the names of `arrays` and `batch_size` rows each, a pure function of
  (seed, step): nothing has to be saved to continue from a step. Rows come in epochs, each a new
  random order of all rows; a batch that an epoch cannot fill goes on in the next one.

  Args:
    arrays: Arrays of one length N >= 1 by name, `[N, ...]`, or dicts of such arrays by name.
    batch_size: Rows in a batch over all processes, 1 to N.
    seed: Decides the order, 0 to 2⁶⁴ - 1.
    process_index: Which part of each batch is given, 0 to process_count - 1.
    process_count: Into how many parts of equal length batches are cut.
    truncated: Captions that were cut when they became tokens.

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
    arrays, lengths = _map(np.asarray, arrays), {}
    _map(lambda a: lengths.setdefault(len(a) if a.ndim else None, a.shape), arrays)
    if len(lengths) != 1 or None in lengths:
      shapes = _map(np.shape, arrays)
      raise InputError(f"the loader takes arrays [N, ...] of one length N, got shapes {shapes}")
    (count,) = lengths
    shares = check_shares(count, batch_size, seed, process_index, process_count)
    order = Order(count, seed=operator.index(seed))
    self.batches = grain.MapDataset.source(_Batches(arrays, order, shares))
    self.truncated = truncated

  def __getitem__(self, step: int) -> Columns:
    return self.batches[check_step(step)]

  def iterate(self, start: int) -> Iterator[Columns]:
    """The batches from a step on, without end."""
    return (self[step] for step in itertools.count(start))


def _map(function: Callable, columns: Any) -> Any:
  if isinstance(columns, Mapping):
    return {name: _map(function, column) for name, column in columns.items()}
  return function(columns)


def check_step(step: int) -> int:
  """The step, if it is one; InputError otherwise."""
  if operator.index(step) < 0:
    raise InputError(f"steps count from 0, got {step}")
  return operator.index(step)


def check_shares(
  count: int, batch_size: int, seed: int, process_index: int, process_count: int
) -> dict[str, int]:
  """The arguments of `order.share`, if batches of this size can be made and divided.

  Args:
    count: Rows of the data set.
    batch_size: Rows in a batch.
    seed: Of the order.
    process_index: Part of a batch.
    process_count: Parts of a batch.

  Returns:
    The last three but the seed, by name.

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
  return {
    "batch_size": operator.index(batch_size),
    "process_index": operator.index(process_index),
    "process_count": operator.index(process_count),
  }
