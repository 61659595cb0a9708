"""The batches of a run on its devices: each process reads the rows of its own devices."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from dmpo_jax import data
from dmpo_jax.errors import InputError
from dmpo_jax.training.batch import Batch

Loader = data.Loader | data.FolderLoader


def check_devices(mesh: Mesh) -> None:
  """Raises InputError if the mesh has no device of this process."""
  if not any(device.process_index == jax.process_index() for device in mesh.devices.flat):
    raise InputError(
      f"process {jax.process_index()} has none of the {mesh.size} devices that are used; set "
      "config.num_devices to a number that has some of each process, or 0"
    )


class DeviceBatches:
  """Batches by step, on the devices of all processes.

  Row r of a step's batch is the same example in every layout; only the process that reads it
  differs.

  Args:
    make_loader: `(process_index=, process_count=)` -> the loader of one of `process_count` equal
      parts of each batch.
    batch_size: Examples in a batch over all processes.
    sharding: Sharding of a batch: its first axis over all devices.

  Attributes:
    truncated: Captions of the data set that are cut.
  """

  def __init__(self, make_loader: Callable[..., Loader], batch_size: int, sharding: Sharding):
    self._batch_size, self._sharding = batch_size, sharding
    indices = sharding.addressable_devices_indices_map((batch_size,))
    rows = sorted({_bounds(index, batch_size) for index in indices.values()})
    # A process's devices need not be neighbours in the mesh: it reads the fewest parts of equal
    # length that make up its rows.
    runs = [rows[0]]
    for start, stop in rows[1:]:
      if start == runs[-1][1]:
        runs[-1] = (runs[-1][0], stop)
      else:
        runs.append((start, stop))
    each = math.gcd(batch_size, *(bound for run in runs for bound in run))
    parts = [part for start, stop in runs for part in range(start // each, stop // each)]
    self._loaders = [
      make_loader(process_index=part, process_count=batch_size // each) for part in parts
    ]
    # Global row -> its position among the rows that this process reads.
    global_rows = np.concatenate([np.arange(each) + part * each for part in parts])
    self._position = {int(row): i for i, row in enumerate(global_rows)}
    self.truncated = self._loaders[0].truncated

  def __getitem__(self, step: int) -> Batch:
    return self._on_devices([loader[step] for loader in self._loaders])

  def iterate(self, start: int) -> Iterator[Batch]:
    """The batches from a step on, without end."""
    readers = [loader.iterate(start) for loader in self._loaders]
    try:
      for parts in zip(*readers, strict=True):
        yield self._on_devices(parts)
    finally:
      for reader in readers:
        reader.close()

  def _on_devices(self, parts: list[dict[str, Any]]) -> Batch:
    columns = jax.tree.map(lambda *arrays: _joined(arrays), *parts)
    return Batch(**jax.tree.map(self._array, columns))

  def _array(self, column: np.ndarray) -> jax.Array:
    shape = (self._batch_size, *column.shape[1:])

    def rows(index: tuple[slice, ...]) -> np.ndarray:
      start, stop = _bounds(index, self._batch_size)
      position = self._position[start]
      return column[position : position + stop - start]

    return jax.make_array_from_callback(shape, self._sharding, rows)


def _bounds(index: tuple[slice, ...], size: int) -> tuple[int, int]:
  return index[0].indices(size)[:2]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
  return parts[0] if len(parts) == 1 else np.concatenate(parts)
