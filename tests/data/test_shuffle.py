"""Orders that are looked up by place, and their parts."""

import numpy as np

from dmpo_jax.data.loader import Loader
from dmpo_jax.data.shuffle import Order, share


def test_every_epoch_has_every_row_once():
  rows, epochs = Order(10, seed=1).at(np.arange(50))
  np.testing.assert_array_equal(epochs, np.repeat(np.arange(5), 10))
  np.testing.assert_array_equal(np.sort(rows.reshape(5, 10), axis=1), [np.arange(10)] * 5)


def test_a_place_is_found_without_those_before_it():
  rows, _ = Order(10, seed=1).at(np.arange(500))
  for place in (499, 3, 250, 251, 0):
    assert Order(10, seed=1).at(np.array([place]))[0] == rows[place]


def test_places_may_span_many_epochs():
  rows, epochs = Order(2, seed=0).at(np.arange(1, 12))
  assert len(rows) == 11
  np.testing.assert_array_equal(epochs, np.arange(1, 12) // 2)


def test_streams_have_orders_of_their_own():
  orders = {tuple(Order(30, seed=0, stream=s).at(np.arange(30))[0]) for s in range(20)}
  assert len(orders) == 20


def test_the_shares_of_processes_are_the_batch():
  whole = share(7, batch_size=12)
  np.testing.assert_array_equal(whole, np.arange(84, 96))
  parts = [share(7, batch_size=12, process_index=i, process_count=3) for i in range(3)]
  np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_processes_load_from_memory_is_the_batch():
  def load(**processes):
    return Loader({"row": np.arange(10)}, batch_size=8, seed=3, **processes)

  for step in range(4):
    parts = [load(process_index=i, process_count=4)[step]["row"] for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), load()[step]["row"])


def test_batches_from_a_step_on_are_those_of_the_steps():
  loader = Loader({"row": np.arange(10)}, batch_size=4, seed=3)
  for step, batch in zip(range(5, 15), loader.iterate(5), strict=False):
    np.testing.assert_array_equal(batch["row"], loader[step]["row"])


def test_a_run_from_memory_goes_on_inside_an_epoch_in_any_number_of_processes():
  def part(index, count):
    return Loader(
      {"row": np.arange(10)}, batch_size=4, seed=3, process_index=index, process_count=count
    )

  for start, count in ((0, 2), (3, 4), (6, 1), (9, 2)):
    ahead = [part(index, count).iterate(start) for index in range(count)]
    for step in range(start, start + 3):
      found = np.concatenate([next(batches)["row"] for batches in ahead])
      np.testing.assert_array_equal(found, part(0, 1)[step]["row"])
