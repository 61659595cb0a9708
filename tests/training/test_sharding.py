"""Where arrays lie: the rule by shape, the mesh, and what does not divide."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dmpo_jax.training import sharding


@pytest.mark.parametrize(
  ("shape", "fsdp", "wanted"),
  [
    ((3, 3, 320, 640), 4, (None, None, None, "fsdp")),
    ((640, 320), 4, ("fsdp",)),
    ((512, 512), 4, (None, "fsdp")),  # the last of equal axes
    ((1280,), 4, ()),  # too small to be worth a message
    ((49_408, 768), 32, ("fsdp",)),
    ((77, 333), 4, ()),  # nothing divides
    ((3, 129, 512), 256, (None, None, "fsdp")),
    ((640, 320), 1, ()),
  ],
)
def test_an_array_is_split_along_its_largest_divisible_axis(shape, fsdp, wanted):
  assert sharding.spec(shape, fsdp) == PartitionSpec(*wanted)


def test_parameters_and_moments_of_one_shape_lie_alike():
  mesh = sharding.make_mesh(4, fsdp=2)
  tree = {"kernel": jax.ShapeDtypeStruct((256, 128), np.float32), "count": np.int32(0)}
  found = sharding.abstract(mesh, {"params": tree, "mu": tree})
  assert found["params"]["kernel"].sharding == found["mu"]["kernel"].sharding
  assert found["mu"]["kernel"].sharding.spec == PartitionSpec("fsdp")
  assert found["mu"]["count"].sharding.is_fully_replicated


def test_examples_are_split_over_all_devices_in_order():
  mesh = sharding.make_mesh(4, fsdp=2)
  placed = jax.device_put(np.arange(8), sharding.batch(mesh))
  parts = {s.device.id: s.data.tolist() for s in placed.addressable_shards}
  assert [parts[d.id] for d in mesh.devices.flat] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"num_devices": 64}, "num_devices is 64, and there are 4 devices"),
    ({"fsdp": 3}, "fsdp 3 does not multiply out to 4 devices"),
    ({"data": 4, "fsdp": 2}, "data 4 x fsdp 2 does not multiply out to 4 devices"),
    ({"num_devices": 2, "data": 1}, "data 1 x fsdp 1 does not multiply out to 2"),
  ],
)
def test_a_mesh_that_does_not_multiply_out_is_refused(arguments, words):
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(**arguments)


def test_a_batch_that_does_not_divide_is_refused_with_what_would():
  mesh = sharding.make_mesh(4)
  sharding.check_batch(mesh, 24, 3)
  with pytest.raises(ValueError, match=r"batch_size 20 does not divide over 4 devices x 3.*of 12"):
    sharding.check_batch(mesh, 20, 3)
