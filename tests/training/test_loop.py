"""The training loop over a step that counts: order of hooks, stopping, and its use by programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.training.batch import Batch
from dmpo_jax.training.loop import Hooks, take_steps
from dmpo_jax.training.step import State


def batches():
  for i in itertools.count():
    yield Batch(text={"ids": jnp.full((2, 1), i)}, example_id=jnp.array([2 * i, 2 * i + 1]))


@jax.jit
def step(state, frozen, reference, batch):
  params = {"w": state.params["w"] + frozen["rate"] * batch.text["ids"].sum()}
  losses = batch.example_id.astype(jnp.float32)
  return State(state.step + 1, params, None, None), {"loss": losses.mean()}, losses


START = State(jnp.int32(0), {"w": jnp.float32(0)}, None, None)
FROZEN = {"rate": jnp.float32(0.5)}


class Log(Hooks):
  def __init__(self, stop_at=None, due=()):
    self.events, self.stop_at, self.due = [], stop_at, due

  def should_stop(self, step):
    return step == self.stop_at

  def before_step(self, step):
    self.events.append(("before", step))

  def after_step(self, result):
    self.events.append(("after", result.step))

  def record(self, result):
    self.events.append(("record", result.step, float(result.metrics["loss"])))

  def is_due(self, step):
    return step in self.due

  def at(self, step, state):
    self.events.append(("at", step, int(state.step)))


def run(n, hooks=None, state=START, first=0):
  rest = itertools.islice(batches(), first, None)
  return take_steps(
    state, rest, n, step=step, frozen=FROZEN, reference=None, first=first, hooks=hooks
  )


def test_n_steps_are_taken_without_any_hook():
  state, done = run(4)
  assert done == 4
  assert int(state.step) == 4
  np.testing.assert_allclose(state.params["w"], 0.5 * 2 * (0 + 1 + 2 + 3))


def test_two_calls_continue_as_one():
  half, done = run(2)
  state, done = run(2, state=half, first=done)
  assert done == 4
  np.testing.assert_array_equal(state.params["w"], run(4)[0].params["w"])


def test_a_step_is_recorded_after_the_next_one_was_dispatched():
  log = Log()
  run(2, log)
  assert log.events == [
    ("before", 0),
    ("after", 1),
    ("before", 1),
    ("after", 2),
    ("record", 1, 0.5),
    ("record", 2, 2.5),
  ]


def test_a_step_at_which_something_is_due_is_recorded_before_it_is_used():
  log = Log(due=(1,))
  run(2, log)
  assert [event[:2] for event in log.events] == [
    ("before", 0),
    ("after", 1),
    ("record", 1),
    ("at", 1),
    ("before", 1),
    ("after", 2),
    ("record", 2),
  ]
  assert ("at", 1, 1) in log.events


def test_a_stopped_loop_records_its_last_step_and_returns_its_state():
  log = Log(stop_at=3)
  state, done = run(10, log)
  assert done == int(state.step) == 3
  assert log.events[-1][:2] == ("record", 3)


def test_a_loop_that_is_stopped_at_once_takes_no_step():
  state, done = run(5, Log(stop_at=0))
  assert done == 0
  np.testing.assert_array_equal(state.params["w"], 0)
