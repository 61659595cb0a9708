"""The training loop: steps over batches, with hooks for everything that happens beside them."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from dmpo_jax.training.batch import Batch
from dmpo_jax.training.objective import Params
from dmpo_jax.training.step import State


class StepResult(NamedTuple):
  """The results of a step; arrays may still be being computed.

  Attributes:
    step: Steps done, this one included.
    metrics: Means over the examples by name, float32 scalars.
    losses: float32 `[examples]`.
    example_id: uint32 `[examples]`.
  """

  step: int
  metrics: Mapping[str, jax.Array]
  losses: jax.Array
  example_id: jax.Array


class Hooks:
  """Callbacks of the loop; subclass and override. By default they do nothing."""

  def should_stop(self, step: int) -> bool:
    """Whether to stop after `step` steps; called once before each further step."""
    return False

  def before_step(self, step: int) -> None:
    """Called after `step` steps were dispatched, before the next one."""

  def after_step(self, result: StepResult) -> None:
    """Called when a step was dispatched; it may still be running."""

  def record(self, result: StepResult) -> None:
    """Called once for each step, in order. Reading the metrics waits for the step."""

  def is_due(self, step: int) -> bool:
    """Whether `at` has something to do after `step` steps."""
    return False

  def at(self, step: int, state: State) -> None:
    """Called where `is_due`, once the step is recorded, with the state after it."""


def take_steps(
  state: State,
  batches: Iterator[Batch],
  n: int,
  *,
  step: Callable,
  frozen: Params,
  reference: Params | None,
  first: int = 0,
  hooks: Hooks | None = None,
) -> tuple[State, int]:
  """Takes optimizer steps on batches.

  A step is recorded after the next one was dispatched, so that the devices never wait for the host.

  Args:
    state: The state before the first of them; it is donated.
    batches: At least n batches.
    n: Number of steps.
    step: `(state, frozen, reference, batch) -> (state, metrics, losses)`, from `compile_step`.
    frozen: Parameters that are not trained.
    reference: The reference's parameters, or None.
    first: Steps done before.
    hooks: Called beside the steps; None: nothing is.

  Returns:
    The state after the last step that was taken, and the number of steps done; fewer than
    first + n if `hooks.should_stop`.
  """
  hooks = hooks or Hooks()
  done, pending = first, None  # pending: the last step, while it is not recorded

  def record() -> None:
    nonlocal pending
    if pending is not None:
      result, pending = pending, None
      hooks.record(result)

  while done < first + n and not hooks.should_stop(done):
    hooks.before_step(done)
    batch = next(batches)
    state, metrics, losses = step(state, frozen, reference, batch)
    result = StepResult(done + 1, metrics, losses, batch.example_id)
    hooks.after_step(result)
    record()
    done, pending = done + 1, result
    if hooks.is_due(done):
      record()
      hooks.at(done, state)
  record()
  return state, done
