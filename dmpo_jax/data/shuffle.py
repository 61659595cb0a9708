"""Random orders without end, looked up by place."""

import threading

import numpy as np


class Order:
  """N rows again and again, each epoch in a new random order.

  What stands at a place depends on (seed, stream, place) alone and is found without what stands
  before it: an epoch of a million rows takes a tenth of a second to sort, once.

  Args:
    count: N >= 1.
    seed: Decides the orders, 0 to 2⁶⁴ - 1.
    stream: Another one gives independent orders, 0 to 2¹⁵ - 1.
  """

  def __init__(self, count: int, *, seed: int, stream: int = 0):
    self.count, self.seed, self.stream = count, seed, stream
    self.orders, self.lock = {}, threading.Lock()

  def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows at places.

    Args:
      places: Integers >= 0 `[n]`, ascending.

    Returns:
      rows: int64 `[n]` in [0, N).
      epochs: int64 `[n]`.
    """
    epochs, offsets = np.divmod(places, self.count)
    rows = np.empty(len(places), np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
      here = epochs == epoch
      rows[here] = self._order(epoch)[offsets[here]]
    return rows, epochs

  def _order(self, epoch: int) -> np.ndarray:
    with self.lock:  # grain reads from several threads; one of them shall sort
      if epoch not in self.orders:
        # The raw stream of a bit generator is what numpy keeps from one version to the next.
        key = np.array([self.seed, epoch + (self.stream << 48)], np.uint64)
        draws = np.random.Philox(key=key).random_raw(self.count)
        self.orders = {e: o for e, o in self.orders.items() if abs(e - epoch) < 2}
        self.orders[epoch] = np.argsort(draws, kind="stable")
      return self.orders[epoch]


def share(
  step: int, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
  """The places of a step's batch, or of one process's part of it.

  Args:
    step: >= 0.
    batch_size: Of all processes together; `process_count` divides it.
    process_index: Which part.
    process_count: How many parts.

  Returns:
    int64 `[batch_size / process_count]`; the parts in order are the batch.
  """
  each = batch_size // process_count
  return step * batch_size + process_index * each + np.arange(each)
