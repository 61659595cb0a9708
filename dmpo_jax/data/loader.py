"""Batches by step number: what a run sees at a step depends on the seed and the step alone."""

import operator
import sys
from collections.abc import Mapping

import grain
import numpy as np

from dmpo_jax.errors import InputError


class _Batches:
  """Grain's random-access source whose item number `step` is the batch of that step.

  Whole batches are gathered here and not item by item in grain: its shuffle and bookkeeping take
  45 microseconds an item, more than a small image is worth.
  """

  def __init__(self, arrays: dict[str, np.ndarray], batch_size: int, seed: int):
    self.arrays, self.batch_size, self.seed = arrays, batch_size, seed
    self.count = len(next(iter(arrays.values())))
    self.orders = {}

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    positions = int(step) * self.batch_size + np.arange(self.batch_size)
    epochs, offsets = np.divmod(positions, self.count)
    order = np.stack([self._order(e) for e in (int(epochs[0]), int(epochs[-1]))])
    rows = order[epochs - epochs[0], offsets]  # a batch is never longer than an epoch
    return {name: array[rows] for name, array in self.arrays.items()}

  def _order(self, epoch: int) -> np.ndarray:
    order = self.orders.get(epoch)
    if order is None:
      # The raw stream of a bit generator is what numpy keeps from one version to the next.
      draws = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(self.count)
      order = np.argsort(draws, kind="stable")
      # A new dict, not a changed one: grain may read from several threads.
      self.orders = {e: o for e, o in self.orders.items() if abs(e - epoch) < 2} | {epoch: order}
    return order


class Loader:
  """Shuffled batches of parallel arrays, without end, by random access.

  `loader[step]` is a dict with the names of `arrays` and `batch_size` rows each, a pure function of
  (seed, step): nothing has to be saved to continue from a step. Rows come in epochs, each a new
  random order of all rows; a batch that an epoch cannot fill goes on in the next one.

  Args:
    arrays: Arrays of one length N >= 1 by name, `[N, ...]`.
    batch_size: Rows in a batch, 1 to N.
    seed: Decides the order, 0 to 2⁶⁴ - 1.

  Attributes:
    batches: The same batches as grain's MapDataset, for its prefetching:
      `loader.batches[start:].to_iter_dataset(...)`.

  Raises:
    InputError: There is no array or no row, lengths differ, or a number is out of range.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], *, batch_size: int, seed: int):
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    lengths = {name: len(a) if a.ndim else None for name, a in arrays.items()}
    if not arrays or None in lengths.values() or len(set(lengths.values())) != 1:
      raise InputError(f"the loader takes arrays [N, ...] of one length N, got lengths {lengths}")
    count = next(iter(lengths.values()))
    if count == 0:
      raise InputError("the data set is empty: there is nothing to make a batch of")
    if not 1 <= operator.index(batch_size) <= count:
      raise InputError(
        f"batch_size {batch_size} does not fit a data set of {count} rows; "
        f"choose 1 to {count}, or give more data"
      )
    if not 0 <= operator.index(seed) < 2**64:
      raise InputError(f"seed must be an integer from 0 to 2**64 - 1, got {seed}")
    source = _Batches(arrays, operator.index(batch_size), operator.index(seed))
    self.batches = grain.MapDataset.source(source)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    if operator.index(step) < 0:
      raise InputError(f"steps count from 0, got {step}")
    return self.batches[operator.index(step)]
