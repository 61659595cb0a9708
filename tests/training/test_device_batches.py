"""Batches on devices: row r of a step is the same example in every layout.

tests/training/test_layouts.py has processes whose devices do not stand together in the mesh.
"""

import numpy as np
import pytest

from dmpo_jax.data import Loader
from dmpo_jax.parallel import sharding
from dmpo_jax.training.device_batches import DeviceBatches

ROWS = {
  "images": np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1, 1),
  "input_ids": np.zeros((40, 3), np.int32),
  "example_id": np.arange(40, dtype=np.uint32),
}


def make_loader(**part):
  return Loader(ROWS, batch_size=8, seed=5, **part)


@pytest.mark.parametrize("mesh", [{"num_devices": 1}, {"num_devices": 4, "fsdp": 2}])
def test_a_batch_on_devices_is_the_loaders(mesh):
  feed = DeviceBatches(make_loader, 8, sharding.batch(sharding.make_mesh(**mesh)))
  batches = feed.iterate(3)
  for step in (3, 4):
    wanted, found = make_loader()[step], next(batches)
    for name, column in wanted.items():
      np.testing.assert_array_equal(getattr(found, name), column)
  np.testing.assert_array_equal(feed[4].example_id, found.example_id)
  assert found.label is None


def test_each_device_holds_its_own_rows():
  feed = DeviceBatches(make_loader, 8, sharding.batch(sharding.make_mesh(4)))
  shards = feed[0].example_id.addressable_shards
  rows = [np.asarray(s.data) for s in sorted(shards, key=lambda s: s.index[0].start)]
  assert [len(x) for x in rows] == [2] * 4
  np.testing.assert_array_equal(np.concatenate(rows), make_loader()[0]["example_id"])
