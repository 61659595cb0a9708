"""Checksums depend on the bytes of arrays and not on their sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.array_checksums import checksums

ARRAY = np.random.default_rng(0).standard_normal((4, 3, 8, 20)).astype(np.float32)


def test_the_checksum_follows_the_formula_of_the_docstring():
  total = 0
  for index, word in enumerate(ARRAY.reshape(-1).view(np.uint32).tolist()):
    weight = index * 0x85EBCA6B % 2**32
    weight = (weight ^ weight >> 15) * 0xC2B2AE35 % 2**32 | 1
    total += weight * word
  assert checksums({"x": ARRAY}) == {"x": total % 2**32}


@pytest.mark.parametrize(
  "spec",
  [(), ("fsdp",), (None, None, "fsdp"), (None, None, None, "data"), ("data", None, "fsdp")],
)
def test_the_checksum_does_not_depend_on_sharding(spec):
  mesh = sharding.make_mesh(4, fsdp=2)
  array = jax.device_put(ARRAY, NamedSharding(mesh, PartitionSpec(*spec)))
  assert checksums({"x": array}) == checksums({"x": ARRAY})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_every_change_of_one_element_is_detected(dtype):
  array = np.array(jnp.asarray(ARRAY * 50, dtype))
  before, words = checksums({"x": array}), array.reshape(-1).view(f"u{array.itemsize}")
  for index in (0, 1, 777, array.size - 1):
    for bit in range(8 * array.itemsize) if dtype != "bool" else [0]:
      words[index] ^= 1 << bit
      assert checksums({"x": array}) != before
      words[index] ^= 1 << bit
  assert checksums({"x": array}) == before


def test_reordered_elements_are_detected():
  assert checksums({"x": ARRAY[::-1]}) != checksums({"x": ARRAY})
  one, other = checksums({"x": ARRAY[0]}), checksums({"x": ARRAY[1]})
  assert one != other


def test_large_arrays_are_summed_in_chunks_of_rows():
  array = np.random.default_rng(1).standard_normal((700, 1000)).astype(np.float32)
  sharded = jax.device_put(array, NamedSharding(sharding.make_mesh(4), PartitionSpec(None, "data")))
  assert checksums({"x": sharded}) == checksums({"x": array})
