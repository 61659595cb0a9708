"""Alarms about a run: when they begin and end, what to do about them, and the run's end by one."""

import logging
import statistics
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax.common import files

LOGGER = logging.getLogger(__name__)

# Alarms by name, which is also that of the flag in the records, and what to do. The first is
# measured in every train step, the others by the held-out evaluation.
ADVICE = {
  "gradient_spikes": "Lower the learning rate, warm up longer, or lower config.optimizer.clip_norm",
  "preferred_rises": "Lower the learning rate or raise beta, or take the checkpoint before",
  "saturates": "At a high accuracy the pairs are learned: end the run here. Else lower beta or "
  "the learning rate",
  "drifts": "Lower the learning rate, raise beta, or set config.loss.anchor_weight; with a "
  "reference that moves, raise config.reference.decay or config.reference.every",
}
HELD_OUT = ("preferred_rises", "saturates", "drifts")


class AlarmStop(Exception):
  """An alarm of config.health.stop is on.

  Attributes:
    name: Key of `ADVICE`.
    step: Steps done when the alarm was noticed; their state is not saved.
    text: The alarm in words, without the advice.
  """

  def __init__(self, name: str, step: int, text: str):
    super().__init__(text)
    self.name, self.step, self.text = name, step, text


class Alarms:
  """The alarms of a run. All processes call the methods with the same numbers.

      gradient_spikes   |g_t| > spike · median(|g_t-1| ... |g_t-window|); for window steps
      preferred_rises   mean(e_w - s_w) > rise · its standard error
      saturates         fraction of pairs with |d loss/d z| < saturated_factor · its value where
                        policy = reference, > saturated
      drifts            mean |e - s| > drift · mean s

  e are the held-out errors, s those of the starting pipeline. The last three come as flags of the
  evaluation's record, see `held_out_errors.summarise`.

  Args:
    section: The section config.health.
    is_first: True in the process that prints messages.
  """

  def __init__(self, section: ConfigDict, *, is_first: bool):
    self._section, self._is_first = section, is_first
    self._norms: list[float] = []
    self._last_spike = -section.spike_window
    self._active: dict[str, str] = {}  # name -> its last text

  def state(self) -> dict[str, Any]:
    """The alarms as a checkpoint holds them, in JSON."""
    return {
      "gradient_norms": self._norms,
      "last_spike": self._last_spike,
      "active": dict(self._active),
    }

  def restore(self, state: Mapping[str, Any]) -> None:
    """Takes over the state of a checkpoint; one without alarms leaves everything as it was.

    Args:
      state: Result of `state`, or {}.

    Raises:
      InputError: It is damaged.
    """
    advice = "move the folder of that checkpoint away to continue from the one before"
    with files.reading("the checkpoint", "record of alarms", advice=advice):
      if state:
        self._norms = [float(norm) for norm in state["gradient_norms"]]
        self._last_spike = int(state["last_spike"])
        self._active = {name: str(state["active"][name]) for name in state["active"]}

  def after_step(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Takes the metrics of a train step.

    Args:
      step: Steps done.
      metrics: Metrics of the last of them, with `gradient_norm`.

    Returns:
      The flag of `gradient_spikes`, 1 or 0.
    """
    norm, window = metrics["gradient_norm"], self._section.spike_window
    past = self._norms[-window:]
    median = statistics.median(past) if len(past) == window else 0.0
    if median and norm > self._section.spike * median:
      self._last_spike = step
    self._norms = [*past, norm][-window:]
    is_on = step - self._last_spike < window
    text = f"the gradient norm is {norm:.3g}, the median of the {window} steps before {median:.3g}"
    self._update(step, "gradient_spikes", is_on, text)
    return {"gradient_spikes": float(is_on)}

  def after_evaluation(self, step: int, record: Mapping[str, Any], moves: bool) -> None:
    """Takes a record of the held-out evaluation.

    Args:
      step: Steps done.
      record: Result of `held_out_errors.summarise`.
      moves: Whether the reference moves.
    """
    for name in HELD_OUT:
      if name in record:
        self._update(step, name, bool(record[name]), _text(name, record, self._section, moves))

  def check(self, step: int) -> None:
    """Raises AlarmStop if an alarm of config.health.stop is on."""
    for name in self._section.stop:
      if name in self._active:
        raise AlarmStop(name, step, self._active[name])

  def _update(self, step: int, name: str, is_on: bool, text: str) -> None:
    """Prints the beginning and the end of an alarm, once each."""
    was_on = name in self._active
    if is_on:
      self._active[name] = text
    else:
      self._active.pop(name, None)
    if self._is_first and is_on and not was_on:
      LOGGER.warning(
        "alarm %s, step %d: %s. %s; see docs/monitoring.md", name, step, text, ADVICE[name]
      )
    elif self._is_first and was_on and not is_on:
      LOGGER.warning("step %d: alarm %s has ended", step, name)


def _text(name: str, record: Mapping[str, Any], section: ConfigDict, moves: bool) -> str:
  """An alarm of the held-out evaluation in words."""
  if name == "saturates":
    return (
      f"{record['saturation']:.0%} of the held-out pairs are saturated, with less than "
      f"{section.saturated_factor:g} of the gradient factor where policy and reference are equal, "
      f"at a held-out accuracy of {record['accuracy']:.2f}"
    )
  if name == "drifts":
    network = "reference" if moves else "policy"
    return (
      f"errors of the {network} on held-out images differ from those of the starting pipeline by "
      f"{record['drift']:.0%} of their size"
    )
  change, error = record["preferred_change"], record["preferred_change_se"]
  worst = max(record["bins"], key=lambda metrics: metrics["preferred_change"])
  percent = 100 * change / record["preferred_reference"]
  return (
    f"on held-out pairs the policy denoises the preferred images worse than the starting pipeline, "
    f"by {change:.3g} ({percent:.2g}%, {change / max(error, 1e-12):.0f} standard errors), most at "
    f"timesteps {worst['from']} to {worst['to']}: the margin is bought by unlearning"
  )
