"""The order of a run's examples in memory."""

import grain
import numpy as np
import pytest

from dmpo_jax.data import Loader
from dmpo_jax.errors import InputError


def make(count=12, batch_size=4, seed=0):
  return Loader({"row": np.arange(count)}, batch_size=batch_size, seed=seed)


def rows(loader, steps):
  return np.concatenate([loader[step]["row"] for step in steps])


def test_every_epoch_covers_every_row_once():
  loader = make()
  for epoch in range(5):
    order = rows(loader, range(3 * epoch, 3 * epoch + 3))
    np.testing.assert_array_equal(np.sort(order), np.arange(12))


def test_a_batch_may_span_two_epochs():
  order = rows(make(count=10), range(5))  # two epochs, the border within a batch
  np.testing.assert_array_equal(np.sort(order[:10]), np.arange(10))
  np.testing.assert_array_equal(np.sort(order[10:]), np.arange(10))


def test_every_epoch_has_its_own_order():
  loader = make(count=30, batch_size=30)
  orders = {tuple(loader[epoch]["row"]) for epoch in range(20)}
  assert len(orders) == 20


def test_a_batch_does_not_depend_on_earlier_calls():
  steps = [7, 0, 1000, 3, 7, 2, 999_999]
  loader = make(count=10)
  for step in steps:
    np.testing.assert_array_equal(loader[step]["row"], make(count=10)[step]["row"])


def test_the_order_of_a_seed_is_fixed():
  np.testing.assert_array_equal(rows(make(), range(3)), [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7])


def test_seeds_give_orders_that_are_no_shifted_copies_of_each_other():
  orders = {tuple(make(30, 30, seed)[epoch]["row"]) for seed in range(6) for epoch in range(6)}
  assert len(orders) == 36


def test_every_row_is_first_equally_often():
  loader = make(count=4, batch_size=4)
  first = np.bincount([loader[epoch]["row"][0] for epoch in range(4000)])
  np.testing.assert_allclose(first, 1000, atol=130)


def test_arrays_are_batched_together_and_keep_shape_and_dtype():
  images = np.arange(6 * 8, dtype=np.float32).reshape(6, 2, 2, 2)
  batch = Loader({"x": images, "id": np.arange(6, dtype=np.uint32)}, batch_size=4, seed=3)[1]
  assert batch["x"].dtype == np.float32
  assert batch["id"].dtype == np.uint32
  np.testing.assert_array_equal(batch["x"], images[batch["id"]])


def test_a_batch_is_a_copy_that_may_be_written_to():
  loader = make()
  loader[0]["row"][:] = -1
  assert (loader[0]["row"] >= 0).all()


@pytest.mark.parametrize("threads", [1, 8])
def test_grains_prefetching_gives_the_same_batches(threads):
  loader = make(count=10)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16)
  batches = iter(loader.batches[5:].to_iter_dataset(options))
  for step in range(5, 60):
    np.testing.assert_array_equal(next(batches)["row"], loader[step]["row"])


@pytest.mark.parametrize(
  ("arrays", "changes", "message"),
  [
    ({}, {}, "arrays .* of one length N"),
    ({"a": np.zeros(3), "b": np.zeros(4)}, {}, r"'a': \(3,\), 'b': \(4,\)"),
    ({"a": np.float32(1)}, {}, r"'a': \(\)"),
    ({"a": np.zeros((0, 8))}, {}, "data set is empty"),
    ({"a": np.zeros(3)}, {"batch_size": 4}, "batch_size 4 does not fit a data set of 3 rows"),
    ({"a": np.zeros(3)}, {"batch_size": 0}, "batch_size 0 does not fit"),
    ({"a": np.zeros(3)}, {"seed": -1}, "seed must be an integer from 0"),
  ],
)
def test_invalid_arrays_and_numbers_are_refused(arrays, changes, message):
  with pytest.raises(InputError, match=message):
    Loader(arrays, **{"batch_size": 2, "seed": 0, **changes})


def test_a_step_before_the_first_is_refused():
  with pytest.raises(InputError, match="steps count from 0, got -1"):
    make()[-1]
