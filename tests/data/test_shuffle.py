"""Shuffled epochs by random access, and their division over processes."""

import numpy as np

from dmpo_jax.data.loader import Batching, Loader
from dmpo_jax.data.shuffle import Shuffle


def test_every_epoch_has_every_row_once():
  rows, epochs = Shuffle(10, seed=1).at(np.arange(50))
  np.testing.assert_array_equal(epochs, np.repeat(np.arange(5), 10))
  np.testing.assert_array_equal(np.sort(rows.reshape(5, 10), axis=1), [np.arange(10)] * 5)


def test_a_position_does_not_depend_on_earlier_calls():
  rows, _ = Shuffle(10, seed=1).at(np.arange(500))
  for position in (499, 3, 250, 251, 0):
    assert Shuffle(10, seed=1).at(np.array([position]))[0] == rows[position]


def test_positions_may_span_many_epochs():
  rows, epochs = Shuffle(2, seed=0).at(np.arange(1, 12))
  assert len(rows) == 11
  np.testing.assert_array_equal(epochs, np.arange(1, 12) // 2)


def test_data_sets_have_independent_orders():
  orders = {tuple(Shuffle(30, seed=0, dataset_id=s).at(np.arange(30))[0]) for s in range(20)}
  assert len(orders) == 20


def test_the_positions_of_all_processes_are_those_of_the_batch():
  whole = Batching(12).positions(7)
  np.testing.assert_array_equal(whole, np.arange(84, 96))
  parts = [Batching(12, i, 3).positions(7) for i in range(3)]
  np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_parts_that_processes_load_from_memory_are_the_batch():
  def load(**processes):
    return Loader({"row": np.arange(10)}, batch_size=8, seed=3, **processes)

  for step in range(4):
    parts = [load(process_index=i, process_count=4)[step]["row"] for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), load()[step]["row"])


def test_iterating_gives_the_batches_of_the_steps():
  loader = Loader({"row": np.arange(10)}, batch_size=4, seed=3)
  for step, batch in zip(range(5, 15), loader.iterate(5), strict=False):
    np.testing.assert_array_equal(batch["row"], loader[step]["row"])


def test_a_run_from_memory_resumes_within_an_epoch_on_any_number_of_processes():
  def part(index, count):
    return Loader(
      {"row": np.arange(10)}, batch_size=4, seed=3, process_index=index, process_count=count
    )

  for start, count in ((0, 2), (3, 4), (6, 1), (9, 2)):
    ahead = [part(index, count).iterate(start) for index in range(count)]
    for step in range(start, start + 3):
      batch = np.concatenate([next(batches)["row"] for batches in ahead])
      np.testing.assert_array_equal(batch, part(0, 1)[step]["row"])
