"""Monitoring of a run: metrics, timings, held-out evaluation, sample grids, a profile.

Monitoring only reads the training state and uses random keys of its own, so it changes no number
that the run computes. All of it but the metrics may be switched on and off between two starts of
one run.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from dmpo_jax.common import mirrors, paths
from dmpo_jax.common.atomic_files import writing
from dmpo_jax.errors import InputError, short
from dmpo_jax.models import flops
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.goodput import Goodput
from dmpo_jax.training.monitor.alarms import Alarms
from dmpo_jax.training.monitor.held_out import HeldOutEvaluation
from dmpo_jax.training.monitor.metrics import MetricsWriter, check_wandb, open_wandb
from dmpo_jax.training.monitor.monitored_run import MonitoredRun
from dmpo_jax.training.monitor.sample_evaluation import SampleEvaluation
from dmpo_jax.training.monitor.sample_grids import SampleGrid, write_grid
from dmpo_jax.training.monitor.throughput import StepTimer
from dmpo_jax.training.objective import Params
from dmpo_jax.training.step import State

LOGGER = logging.getLogger(__name__)


class Monitor:
  """Writes everything that is recorded about a run.

  All processes call the methods in the same order, because evaluation and sample grids compute on
  all devices; the first process writes the files.

  Args:
    run: The run.
    start_time: `time.perf_counter()` at the start of the run.
    is_first: True in the process that writes files.
    broadcast: Returns the value of that process (JSON) in all processes.
    goodput: Counts of the run's wall time; None: new ones.

  Raises:
    InputError: The held-out examples cannot be used, images of this kind of pipeline cannot be
      sampled, or config.wandb names a project and wandb is not installed.
  """

  def __init__(
    self,
    run: MonitoredRun,
    *,
    start_time: float,
    is_first: bool,
    broadcast: Callable[[Any], Any] = lambda value: value,
    goodput: Goodput | None = None,
  ):
    config = run.config
    # The run itself is not kept: its pipeline holds the initial parameters.
    self._config, self._workdir, self._mesh = config, run.workdir, run.mesh
    self._flops = run.objective.pipeline.flops
    self._start_time, self._is_first, self._broadcast = start_time, is_first, broadcast
    self._goodput = goodput or Goodput()
    self.alarms = Alarms(config.health, is_first=is_first)
    self._writer: MetricsWriter | None = None
    self._profile = Profile(config.profile, run.workdir / "profile") if is_first else None
    check_wandb(config.wandb.project)
    if config.held_out.every:
      self._held_out = HeldOutEvaluation(run)
    cached = setup.cached_components(run.objective.pipeline, run.examples)
    unused = {name: tree for name, tree in run.pipeline.params.items() if name in cached}
    parts = (config, run.pipeline, run.objective.combine, run.mesh, unused)
    if config.samples.every:
      self._grid = SampleGrid(*parts)
      if self._grid.truncated and is_first:
        LOGGER.warning("prompts of config.samples are longer than the context and are cut")
    if config.evaluation.every:
      self._evaluation = SampleEvaluation(*parts, is_first=is_first)
      if self._evaluation.truncated and is_first:
        LOGGER.warning("prompts of config.evaluation are longer than the context and are cut")

  def start(self, step: int, state: State, frozen: Params, initial: Params, batch: Batch) -> None:
    """Opens the files, evaluates the reference and, at step 0, the policy; starts the timer.

    Args:
      step: Steps done.
      state: Training state at that step.
      frozen: Parameters that are not trained.
      initial: Trained parameters at step 0.
      batch: A batch of the run, for its shapes.
    """
    config, mesh = self._config, self._mesh
    if self._is_first:
      wandb = open_wandb(config.wandb.project, self._workdir, config.to_dict())
      self._writer = MetricsWriter(self._workdir, step=step, wandb=wandb)
    kind = mesh.devices.flat[0].device_kind
    peak = flops.peak(kind)
    if peak is None and kind != "cpu":
      LOGGER.info("no mfu is recorded: the peak of %r is not in models/flops.py", kind)
    flops_by_component = self._flops(
      batch,
      trained=tuple(initial),
      reference=setup.uses_reference(config),
      lora=config.lora.rank > 0,
    )
    self._timer = StepTimer(
      self._start_time,
      batch_size=config.batch_size,
      flops=sum(flops_by_component.values()),
      devices=mesh.size,
      peak=peak,
      on_stall=lambda seconds: self._goodput.move(seconds, "data"),
    )
    with self._goodput.part("evaluation"):
      if config.held_out.every:
        shardings = jax.tree.map(lambda x: x.sharding, state.params)
        self._held_out.start(step, jax.device_put(initial, shardings), frozen)
      if config.evaluation.every:
        shardings = jax.tree.map(lambda x: x.sharding, state.params)
        bad = self._evaluation.start(jax.device_put(initial, shardings), frozen)
        self._check_finite(0, bad, "evaluation")
    if step == 0:
      self.evaluate(0, state, frozen)
    self._timer.restart(step)

  def time_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields the batches; waiting for them is timed."""
    return self._timer.time_batches(batches)

  def before_step(self, step: int) -> None:
    """Starts or stops the profiler before a step is dispatched.

    Args:
      step: Steps dispatched.
    """
    if self._profile is not None:
      self._profile.before_step(step)

  def after_step(self, result: Any) -> None:
    """Notes that a step was dispatched.

    Args:
      result: Arrays that the step will fill.
    """
    self._timer.dispatched(result)

  def record(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the metrics of a step that is done, every config.log_every steps.

    Args:
      step: Steps done.
      metrics: Metrics of the last of them.

    Raises:
      AlarmStop: An alarm ends the run; the metrics are written.
    """
    self._timer.done()
    self._goodput.done(step)
    flags = self.alarms.after_step(step, metrics)
    if step % self._config.log_every == 0 or step == self._config.num_steps:
      timings = self._timer.metrics(step)
      if self._writer is not None:
        self._writer.write(step, {**metrics, **flags, **timings, **self._goodput.metrics()})
    self.alarms.check(step)

  def is_due(self, step: int) -> bool:
    """Returns True if `evaluate` has something to do after `step` steps."""
    config = self._config
    sections = (config.held_out, config.samples, config.evaluation)
    return any(self._is_due(section.every, step) for section in sections)

  def evaluate(self, step: int, state: State, frozen: Params) -> None:
    """Runs the held-out evaluation, samples a grid of images and scores samples, if it is due.

    Args:
      step: Steps done and recorded.
      state: Training state at that step.
      frozen: Parameters that are not trained.

    Raises:
      AlarmStop: An alarm ends the run; evaluation and samples are written.
    """
    sampled = state.params if state.ema is None else state.ema
    with self._timer.paused(), self._goodput.part("evaluation"):
      if self._is_due(self._config.held_out.every, step):
        record = self._held_out.evaluate(
          step, state.params, frozen, self._writer, reference=state.reference
        )
        # The first process alone has the record; all must take the same decision.
        record = self._broadcast(record)
        self.alarms.after_evaluation(step, record, moves=state.reference is not None)
      if self._is_due(self._config.samples.every, step):
        grid, bad = self._grid.sample(sampled, frozen)
        self._check_finite(step, bad, "samples")
        if self._writer is not None:
          write_grid(self._workdir / "samples", step, grid, self._config.samples.prompts)
          self._writer.write_image(step, "samples", grid)
      if self._is_due(self._config.evaluation.every, step):
        bad = self._evaluation.evaluate(step, sampled, frozen, self._writer)
        self._check_finite(step, bad, "evaluation")
    self.alarms.check(step)

  def _check_finite(self, step: int, bad: Sequence[tuple[str, int]], section: str) -> None:
    """Raises InputError for samples of the initial pipeline that are not finite; warns later."""
    if not bad:
      return
    (prompt, seed), count = bad[0], len(bad)
    text = (
      f"{count} of the samples at step {step} are not finite, the first of the prompt "
      f"{short(prompt, 200)}, seed {seed}"
    )
    if step == 0:
      raise InputError(
        f"{text}: the pipeline overflows in config.dtype or at config.{section}.guidance "
        f"{self._config[section].guidance}; config.{section}.every=0 trains without samples"
      )
    LOGGER.warning("%s; they are black", text)

  def flush(self) -> None:
    """Writes the records of all steps so far; called before a checkpoint is saved."""
    if self._writer is not None:
      self._writer.flush()

  def close(self) -> None:
    """Ends the profile and closes all files."""
    if self._profile is not None:
      self._profile.close()
    if self._writer is not None:
      self._writer.close()

  def _is_due(self, every: int, step: int) -> bool:
    return every > 0 and (step % every == 0 or step == self._config.num_steps)


class Profile:
  """Traces some steps of a run with jax's profiler.

  Args:
    section: The section config.profile.
    folder: Folder of the trace, which TensorBoard and Perfetto read.
  """

  def __init__(self, section: ConfigDict, folder: paths.Path):
    self._first, self._end = section.start, section.start + section.steps
    self._folder, self._running = folder, False
    self._mirror: mirrors.Mirror | None = None

  def before_step(self, step: int) -> None:
    """Starts or stops the trace; `step` steps were dispatched."""
    if not self._running and self._first <= step < self._end:
      self._mirror = mirrors.Mirror(self._folder)
      jax.profiler.start_trace(str(self._mirror.local))
      self._running = True
    elif self._running and step >= self._end:
      self.close()

  def close(self) -> None:
    """Ends a running trace."""
    if self._running:
      self._running = False
      with writing(self._folder):
        jax.profiler.stop_trace()
        self._mirror.close()
