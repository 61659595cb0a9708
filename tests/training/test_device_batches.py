"""Batches on devices: row r of a step is the same example in every layout.

tests/training/test_layouts.py has processes whose devices do not stand together in the mesh.
"""

import jax
import numpy as np
import pytest

from dmpo_jax.data import Loader
from dmpo_jax.parallel import sharding
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.device_batches import DeviceBatches

ROWS = {
  "pixels": np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1, 1),
  "text": {"input_ids": np.arange(120, dtype=np.int32).reshape(40, 3)},
  "example_id": np.arange(40, dtype=np.uint32),
}


def make_loader(**part):
  return Loader(ROWS, batch_size=8, seed=5, **part)


@pytest.mark.parametrize("mesh", [{"num_devices": 1}, {"num_devices": 4, "fsdp": 2}])
def test_a_batch_on_devices_is_the_loaders(mesh):
  device_batches = DeviceBatches(make_loader, 8, sharding.batch(sharding.make_mesh(**mesh)))
  batches = device_batches.iterate(3)
  for step in (3, 4):
    batch = next(batches)
    jax.tree.map(np.testing.assert_array_equal, batch, Batch(**make_loader()[step]))
  np.testing.assert_array_equal(device_batches[4].example_id, batch.example_id)
  assert batch.label is None


def test_each_device_holds_its_own_rows():
  device_batches = DeviceBatches(make_loader, 8, sharding.batch(sharding.make_mesh(4)))
  shards = device_batches[0].example_id.addressable_shards
  rows = [np.asarray(s.data) for s in sorted(shards, key=lambda s: s.index[0].start)]
  assert [len(x) for x in rows] == [2] * 4
  np.testing.assert_array_equal(np.concatenate(rows), make_loader()[0]["example_id"])
