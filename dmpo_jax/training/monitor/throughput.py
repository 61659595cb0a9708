"""Throughput of a run: seconds per step, examples per second, MFU, and data stalls."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

# Metrics that `StepTimer.metrics` returns: those that differ between equal runs.
TIMINGS = (
  "seconds_per_step",
  "examples_per_second",
  "tflops_per_device",
  "mfu",
  "data_stall_seconds",
  "data_stall_fraction",
  "seconds_to_first_step",
)


class StepTimer:
  """Times the steps of a training loop, over intervals between two records of metrics.

  Args:
    start_time: `time.perf_counter()` at the start of the run.
    batch_size: Examples in a step, over all devices.
    flops: Model FLOPs of one example, see `models.flops.train_step`.
    devices: Number of devices.
    peak: Peak FLOP/s of one device, or None if unknown.
    on_stall: Called with the seconds of each stall.
  """

  def __init__(
    self,
    start_time: float,
    *,
    batch_size: int,
    flops: int,
    devices: int,
    peak: float | None,
    on_stall: Callable[[float], None] = lambda seconds: None,
  ):
    self._batch_size, self._flops, self._devices, self._peak = batch_size, flops, devices, peak
    self._start_time, self._on_stall = start_time, on_stall
    self._in_flight: Any = None
    self.restart(0)

  def restart(self, step: int) -> None:
    """Begins the first interval, once the train step is compiled.

    Args:
      step: Steps done.
    """
    self._step, self._interval_start, self._stalled = step, time.perf_counter(), 0.0
    self._seconds_to_first_step: float | None = None
    self._first_interval = True

  def dispatched(self, result: Any) -> None:
    """Notes that a step was dispatched to the devices.

    Args:
      result: Arrays that the step will fill.
    """
    self._in_flight = result

  def time_batches(self, batches: Iterator[T]) -> Iterator[T]:
    """Yields the batches; a wait for one is a stall if the devices are idle at its end.

    The devices may have worked for a part of that wait, so the stall is an upper bound.
    """
    while True:
      wait_start = time.perf_counter()
      try:
        batch = next(batches)
      except StopIteration:
        return
      waited = time.perf_counter() - wait_start
      if self._in_flight is None or jax.tree.all(
        jax.tree.map(lambda x: x.is_ready(), self._in_flight)
      ):
        self._stalled += waited
        self._on_stall(waited)
      yield batch

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time of its body (held-out evaluation, sample grids) from the steps' time."""
    pause_start = time.perf_counter()
    yield
    self._interval_start += time.perf_counter() - pause_start

  def done(self) -> None:
    """Notes that a step is done."""
    if self._seconds_to_first_step is None:
      self._seconds_to_first_step = time.perf_counter() - self._start_time

  def metrics(self, step: int) -> dict[str, float]:
    """Ends an interval and returns its metrics.

    Args:
      step: Steps done.

    Returns:
      Names of `TIMINGS` -> values; "mfu" only if the peak of the devices is known,
      "seconds_to_first_step" (since the start of the run, with compilation) only the first time.
    """
    now = time.perf_counter()
    seconds = max(now - self._interval_start, 1e-9)
    steps = step - self._step
    rate = steps * self._batch_size / seconds
    device_flops = rate * self._flops / self._devices  # FLOP/s
    metrics = {
      "seconds_per_step": seconds / steps,
      "examples_per_second": rate,
      "tflops_per_device": device_flops / 1e12,
      "data_stall_seconds": self._stalled / steps,
      "data_stall_fraction": min(self._stalled / seconds, 1.0),
    }
    if self._peak is not None:
      metrics["mfu"] = device_flops / self._peak
    if self._first_interval:
      metrics["seconds_to_first_step"] = self._seconds_to_first_step or 0.0
      self._first_interval = False
    self._step, self._interval_start, self._stalled = step, now, 0.0
    return metrics
