"""A network on batches of one shape, sharded over devices."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

THREADS = 8


class Rows(NamedTuple):
  """Devices that share the rows of a batch.

  Attributes:
    spread: Sharding of a batch.
    everywhere: Sharding of parameters: a copy on every device.
    size: Rows of a batch, a multiple of the devices.
  """

  spread: jax.sharding.NamedSharding
  everywhere: jax.sharding.NamedSharding
  size: int


def rows_on(devices: Sequence[jax.Device] | None, batch_size: int) -> Rows:
  """The rows of batches on devices.

  Args:
    devices: The devices; None: those of this process.
    batch_size: Rows at once, in all; rounded up to a multiple of the devices.

  Returns:
    `Rows`.
  """
  devices = list(devices or jax.local_devices())
  mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
  spread, everywhere = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("rows",), ())
  )
  return Rows(spread, everywhere, -(-batch_size // len(devices)) * len(devices))


def batched(
  function: Callable[[Any, Any], jax.Array], params: Any, rows: Rows
) -> Callable[[Sequence[Any], Callable[[Any], Any]], np.ndarray]:
  """A function of any number of rows, compiled for one batch.

  Args:
    function: `function(params, batch)` returns an array with a row for each of the batch, whose
      leaves have the batch as their first axis.
    params: A tree of arrays; copied to the devices unless they are there (`rows.everywhere`).
    rows: From `rows_on`.

  Returns:
    `run(items, prepare)`: the results of `function` as a numpy array with a row for each of at
    least one item. `prepare(item)` returns the item's row, a tree of arrays; threads call it while
    the devices compute. The last batch is filled up with its last row.
  """
  params = jax.device_put(params, rows.everywhere)
  program = jax.jit(
    function, in_shardings=(rows.everywhere, rows.spread), out_shardings=rows.spread
  )

  def run(items: Sequence[Any], prepare: Callable[[Any], Any]) -> np.ndarray:
    results: list[Any] = []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
      for start in range(0, len(items), rows.size):
        batch = list(pool.map(prepare, items[start : start + rows.size]))
        count = len(batch)
        batch += batch[-1:] * (rows.size - count)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batch)
        results.append((program(params, jax.device_put(stacked, rows.spread)), count))
        if len(results) > 1:  # copied while the devices compute the next one
          results[-2] = np.asarray(results[-2][0])[: results[-2][1]]
    results[-1] = np.asarray(results[-1][0])[: results[-1][1]]
    return np.concatenate(results)

  return run
