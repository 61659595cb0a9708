"""Checksums: of the bytes alone, not of where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.array_checksums import checksums

ARRAY = np.random.default_rng(0).standard_normal((4, 3, 8, 20)).astype(np.float32)


def test_the_sum_is_that_of_the_docstring():
  total = 0
  for place, word in enumerate(ARRAY.reshape(-1).view(np.uint32).tolist()):
    weight = place * 0x85EBCA6B % 2**32
    weight = (weight ^ weight >> 15) * 0xC2B2AE35 % 2**32 | 1
    total += weight * word
  assert checksums({"x": ARRAY}) == {"x": total % 2**32}


@pytest.mark.parametrize(
  "spec",
  [(), ("fsdp",), (None, None, "fsdp"), (None, None, None, "data"), ("data", None, "fsdp")],
)
def test_it_does_not_depend_on_how_an_array_lies_on_devices(spec):
  mesh = sharding.make_mesh(4, fsdp=2)
  array = jax.device_put(ARRAY, NamedSharding(mesh, PartitionSpec(*spec)))
  assert checksums({"x": array}) == checksums({"x": ARRAY})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_no_change_of_one_element_goes_unnoticed(dtype):
  array = np.array(jnp.asarray(ARRAY * 50, dtype))
  before, words = checksums({"x": array}), array.reshape(-1).view(f"u{array.itemsize}")
  for place in (0, 1, 777, array.size - 1):
    for bit in range(8 * array.itemsize) if dtype != "bool" else [0]:
      words[place] ^= 1 << bit
      assert checksums({"x": array}) != before
      words[place] ^= 1 << bit
  assert checksums({"x": array}) == before


def test_places_count_so_that_arrays_that_change_places_are_noticed():
  assert checksums({"x": ARRAY[::-1]}) != checksums({"x": ARRAY})
  one, other = checksums({"x": ARRAY[0]}), checksums({"x": ARRAY[1]})
  assert one != other


def test_large_arrays_are_summed_in_chunks_of_rows():
  array = np.random.default_rng(1).standard_normal((700, 1000)).astype(np.float32)
  parts = jax.device_put(array, NamedSharding(sharding.make_mesh(4), PartitionSpec(None, "data")))
  assert checksums({"x": parts}) == checksums({"x": array})
