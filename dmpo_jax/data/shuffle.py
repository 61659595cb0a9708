"""Shuffled epochs of rows, by random access."""

import threading

import numpy as np


class Shuffle:
  """An endless sequence of epochs, each of which holds N rows in a new random order.

  The row at a position depends on (seed, dataset_id, position) alone, and the positions before it
  are not computed. An epoch of a million rows takes a tenth of a second to sort, once.

  Args:
    count: N >= 1.
    seed: Seed of the orders, 0 to 2⁶⁴ - 1.
    dataset_id: Data sets of different ids have independent orders, 0 to 2¹⁵ - 1.
  """

  def __init__(self, count: int, *, seed: int, dataset_id: int = 0):
    self.count, self.seed, self.dataset_id = count, seed, dataset_id
    self.orders, self.lock = {}, threading.Lock()

  def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows at positions of the sequence.

    Args:
      positions: Integers >= 0 `[n]`, ascending.

    Returns:
      rows: int64 `[n]` in [0, N).
      epochs: int64 `[n]`.
    """
    epochs, offsets = np.divmod(positions, self.count)
    rows = np.empty(len(positions), np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
      selected = epochs == epoch
      rows[selected] = self._order(epoch)[offsets[selected]]
    return rows, epochs

  def _order(self, epoch: int) -> np.ndarray:
    with self.lock:  # grain reads in several threads; only one of them sorts
      if epoch not in self.orders:
        # numpy keeps the raw stream of a bit generator equal between versions. Key and sort are the
        # contract by which a run resumes: do not change them.
        key = np.array([self.seed, epoch + (self.dataset_id << 48)], np.uint64)
        keys = np.random.Philox(key=key).random_raw(self.count)
        self.orders = {e: o for e, o in self.orders.items() if abs(e - epoch) < 2}
        self.orders[epoch] = np.argsort(keys, kind="stable")
      return self.orders[epoch]
