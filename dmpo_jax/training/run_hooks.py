"""Everything that happens beside the steps of a run: metrics, evaluation and checkpoints."""

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.loop import Hooks, StepResult
from dmpo_jax.training.step import State


class RunHooks(Hooks):
  """Progress bar, metrics, evaluation and checkpoints of a run."""

  def __init__(self, config, processes, checkpoints, monitor, bar, frozen, save, check_lock):
    self._config, self._processes = config, processes
    self._frozen, self._save, self._check_lock = frozen, save, check_lock
    self._checkpoints, self._monitor, self._bar = checkpoints, monitor, bar

  def should_stop(self, step: int) -> bool:
    return self._processes.should_stop(step)

  def before_step(self, step: int) -> None:
    self._monitor.before_step(step)

  def after_step(self, result: StepResult) -> None:
    self._monitor.after_step(result.losses)

  def record(self, result: StepResult) -> None:
    metrics = {name: float(value) for name, value in result.metrics.items()}
    if not all(np.isfinite(metrics[k]) for k in ("loss", "gradient_norm", "parameter_norm")):
      # All processes come here, so the save that may still be running can be waited for.
      self._checkpoints.wait()
      raise _not_finite(result, metrics, self._checkpoints)
    self._checkpoints.check()
    self._check_lock()
    self._monitor.record(result.step, metrics)
    shown = {k: f"{metrics[k]:.4g}" for k in ("loss", "accuracy") if k in metrics}
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update()

  def is_due(self, step: int) -> bool:
    return self._is_saved(step) or self._monitor.is_due(step)

  def at(self, step: int, state: State) -> None:
    if self._monitor.is_due(step):
      self._monitor.evaluate(step, state, self._frozen)
    if self._is_saved(step):
      self._save(step, state)

  def _is_saved(self, step: int) -> bool:
    return step % self._config.checkpoint.every == 0 or step == self._config.num_steps


def _not_finite(
  result: StepResult, metrics: dict[str, float], checkpoints: Checkpoints
) -> InputError:
  """The error for a step whose loss, gradient or parameters are not finite; it is never saved."""
  losses, ids = on_host((result.losses, result.example_id))
  bad = ~np.isfinite(losses)
  if bad.any():
    what, ids = f"the loss of {bad.sum()} of {bad.size} examples", ids[bad]
  else:
    what = next(name for name, value in metrics.items() if not np.isfinite(value))
  saved = checkpoints.latest()
  good = "no checkpoint was due before it" if saved is None else f"that of step {saved} is good"
  return InputError(
    f"step {result.step}: {what} is not finite (examples with ids {ids[:20].tolist()}). Nothing of "
    f"this step was saved; of the checkpoints in {checkpoints.directory}, {good}. Lower the "
    "learning rate or beta, or look at those examples"
  )
