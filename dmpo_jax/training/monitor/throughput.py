"""How fast a run goes: seconds per step, examples per second, MFU, and waiting for data."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

# What `Clock.lap` returns: the numbers of a row of metrics that differ between equal runs.
TIMINGS = (
  "seconds_per_step",
  "examples_per_second",
  "tflops_per_device",
  "mfu",
  "data_stall_seconds",
  "data_stall_fraction",
  "seconds_to_first_step",
)


class Clock:
  """Times the steps of a run as its loop takes them.

  Args:
    started: `time.perf_counter()` when the run was started.
    batch_size: Examples in a step, over all devices.
    flops: Model FLOPs of one example, see `flops.per_example`.
    devices: How many devices share a step.
    peak: FLOP/s of one of them, or None where it is not known.
  """

  def __init__(
    self, started: float, *, batch_size: int, flops: int, devices: int, peak: float | None
  ):
    self._batch_size, self._flops, self._devices, self._peak = batch_size, flops, devices, peak
    self._started = started
    self._in_flight: Any = None
    self.restart(0)

  def restart(self, step: int) -> None:
    """Starts to count: `step` steps are done, and compiling is over."""
    self._step, self._since, self._stalled = step, time.perf_counter(), 0.0
    self._first, self._said = 0.0, False

  def sent(self, result: Any) -> None:
    """A step was given to the devices; `result` is an array that it will fill."""
    self._in_flight = result

  def waiting(self, batches: Iterator[T]) -> Iterator[T]:
    """The same batches; waiting for one counts as a stall where the devices have run dry by then.

    The devices may have worked for a part of that wait, so that a stall is an upper bound.
    """
    while True:
      begun = time.perf_counter()
      try:
        batch = next(batches)
      except StopIteration:
        return
      waited = time.perf_counter() - begun
      if self._in_flight is None or jax.tree.all(
        jax.tree.map(lambda x: x.is_ready(), self._in_flight)
      ):
        self._stalled += waited
      yield batch

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time of its body (held-out evaluation, sample grids) from the steps' time."""
    begun = time.perf_counter()
    yield
    self._since += time.perf_counter() - begun

  def done(self) -> None:
    """A step is known to be done."""
    self._first = self._first or time.perf_counter() - self._started

  def lap(self, step: int) -> dict[str, float]:
    """What a row says of the steps since the last row.

    Args:
      step: Steps that are known to be done.

    Returns:
      The names of `TIMINGS` -> numbers; "mfu" only where the peak of the devices is known,
      "seconds_to_first_step" (since the run was started, compiling included) only the first time.
    """
    now = time.perf_counter()
    seconds = max(now - self._since, 1e-9)
    steps = step - self._step
    rate = steps * self._batch_size / seconds
    each = rate * self._flops / self._devices
    row = {
      "seconds_per_step": seconds / steps,
      "examples_per_second": rate,
      "tflops_per_device": each / 1e12,
      "data_stall_seconds": self._stalled / steps,
      "data_stall_fraction": min(self._stalled / seconds, 1.0),
    }
    if self._peak is not None:
      row["mfu"] = each / self._peak
    if not self._said:
      row["seconds_to_first_step"], self._said = self._first, True
    self._step, self._since, self._stalled = step, now, 0.0
    return row
