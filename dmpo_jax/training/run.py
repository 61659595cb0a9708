"""A whole run: from a config to a trained pipeline in diffusers' format."""

import contextlib
import functools
import json
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError, PreemptedError
from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.training import config as configs
from dmpo_jax.training import setup
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.device_batches import DeviceBatches, check_devices
from dmpo_jax.training.export import save_run
from dmpo_jax.training.monitor.monitor import Monitor
from dmpo_jax.training.monitor.monitored_run import MonitoredRun
from dmpo_jax.training.objective import Params
from dmpo_jax.training.run_directory import (
  check_base_pipeline,
  check_fingerprint,
  run_lock,
  write_fingerprint,
)
from dmpo_jax.training.step import (
  State,
  abstract_state,
  compile_step,
  make_optimizer,
  make_step,
  placed_state,
)

# What may change between two starts of the same run: it changes no number that is computed, or, as
# the layout of the computation does, by rounding alone.
LAYOUT_KEYS = ("num_devices", "mesh", "grad_accumulation_steps", "remat")
WATCHING_KEYS = ("held_out", "log_every", "profile", "samples", "wandb")
FREE_KEYS = ("num_steps", "checkpoint", *WATCHING_KEYS, *LAYOUT_KEYS)


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    pipeline: Folder in diffusers' format: the averaged parameters where there are any.
    steps: Optimizer steps taken over the whole life of the run.
    resumed_at: Step at which the last start of the run took up; 0 where it was the first.
    seconds: Wall-clock seconds of that last start.
    compile_seconds: Part of it until the first step began: the train step was compiled and, where
      the run is watched, looked at for the first time.
    examples_per_second: Examples (pairs or images) per second once compiled.
    captions_truncated: Captions that were longer than the text encoder's context and were cut.
  """

  pipeline: pathlib.Path
  steps: int
  resumed_at: int
  seconds: float
  compile_seconds: float
  examples_per_second: float
  captions_truncated: int


def train(
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  show_progress: bool = True,
  processes: Processes | None = None,
) -> Result:
  """Trains as a config says, from the last checkpoint in `workdir` if there is one.

  Killed at any moment and started again with the same arguments, it ends with the parameters and
  the metrics it would have had without the kill, bit for bit on the same machines in the same
  layout. SIGTERM makes it finish its step, save and raise PreemptedError.

  Args:
    config: See `dmpo_jax.training.config.default`.
    workdir: Directory of this run alone: run.json, checkpoints/, metrics.jsonl, tensorboard/, what
      docs/monitoring.md lists, and at the end pipeline/, with LoRA lora/ too, and summary.json. All
      processes see it.
    show_progress: Whether to draw a progress bar.
    processes: The processes of the run, which all call this; None: this one by itself.

  Returns:
    `Result`.

  Raises:
    InputError: The config, the data, the pipeline or the work directory cannot be used, or not all
      processes have the same; or a loss is not finite (with the step and the examples; the last
      checkpoint stays).
    OSError: A checkpoint could not be written.
    PreemptedError: SIGTERM came, to any process.
  """
  started = time.perf_counter()
  config, workdir, processes = (
    configs.check(config),
    pathlib.Path(workdir),
    processes or Processes(),
  )
  with processes.preemption_handler(), run_lock(workdir, processes):
    run = _Run(config, workdir, processes, started)
    return run.finish(started, show_progress)


class _Run:
  """A run with its files open."""

  def __init__(
    self, config: ConfigDict, workdir: pathlib.Path, processes: Processes, started: float
  ):
    self.config, self.workdir, self.processes = config, workdir, processes
    check_base_pipeline(config.pipeline, workdir)
    self.mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    sharding.check_batch(self.mesh, config.batch_size, config.grad_accumulation_steps)
    check_devices(self.mesh)
    examples = setup.load_examples(config)
    self.captions = [] if config.pipeline else examples.captions
    held = functools.partial(sharding.shardings, self.mesh)
    pipeline = setup.load_pipeline(config, self.captions, shardings=held)
    self.feed = DeviceBatches(
      setup.make_loaders(config, pipeline, examples), config.batch_size, sharding.batch(self.mesh)
    )
    self.identity = self._identity(examples.fingerprint(), pipeline.params)
    processes.assert_equal("run", self.identity)
    processes.assert_equal("config", {key: config.to_dict()[key] for key in FREE_KEYS})
    if processes.is_first:
      check_fingerprint(workdir, self.identity)
    objective = setup.make_objective(config, pipeline, examples, mesh=self.mesh)
    self.trained, self.frozen, self.reference = (
      sharding.put(tree, held(tree)) for tree in setup.split_params(config, pipeline, examples)
    )
    self.optimizer = make_optimizer(config.optimizer)
    self.step = make_step(
      objective,
      self.optimizer,
      ema_decay=config.ema_decay,
      grad_accumulation_steps=config.grad_accumulation_steps,
      constrain=functools.partial(sharding.constrain, self.mesh),
    )
    self.monitor = Monitor(
      MonitoredRun(config, pipeline, examples, objective, self.mesh, workdir),
      start_time=started,
      is_first=processes.is_first,
    )

  def _identity(self, data: str, params: Params) -> dict:
    """What makes the run this run, in JSON."""
    kept = {k: v for k, v in self.config.to_dict().items() if k not in FREE_KEYS}
    if self.config.pipeline and pathlib.Path(self.config.pipeline).is_dir():
      kept["pipeline"] = str(pathlib.Path(self.config.pipeline).absolute())
    return {
      "config": kept,
      "data": data,
      "base_weights": tree_checksum(params),
      "captions_truncated": self.feed.truncated,
    }

  def finish(self, started: float, show_progress: bool) -> Result:
    """Takes the steps that are missing and writes the pipeline and the summary."""
    total, summary = self.config.num_steps, self.workdir / "summary.json"
    checkpoints = Checkpoints(self.workdir / "checkpoints", keep=self.config.checkpoint.keep)
    with self.processes.closing(checkpoints):
      begun = self.processes.broadcast(checkpoints.latest() or 0)
      if begun > total:
        raise InputError(f"{self.workdir} is at step {begun}, past config.num_steps {total}")
      if begun == total:
        found = self.processes.broadcast(_read_summary(summary))
        if found and found["steps"] == total:
          return Result(**{**found, "pipeline": self.workdir / "pipeline"})
      with jax.set_mesh(self.mesh):
        state = self._restore(checkpoints, begun) if begun else self._initial()
        compiled = time.perf_counter()
        if begun < total:
          state, compiled = self._steps(state, begun, checkpoints, show_progress)
      ended = time.perf_counter()
    save_run(self.workdir, self.config, state, self._start_again, self.processes)
    result = Result(
      pipeline=self.workdir / "pipeline",
      steps=total,
      resumed_at=begun,
      seconds=ended - started,
      compile_seconds=compiled - started,
      examples_per_second=(total - begun) * self.config.batch_size / (ended - compiled),
      captions_truncated=self.feed.truncated,
    )
    if self.processes.is_first:
      write_atomically(summary, json.dumps({**result._asdict(), "pipeline": str(result.pipeline)}))
    self.processes.barrier()
    return result

  def _initial(self) -> State:
    return placed_state(self.trained, self.optimizer, self.mesh, ema=self.config.ema_decay > 0)

  def _restore(self, checkpoints: Checkpoints, step: int) -> State:
    like = abstract_state(self.trained, self.optimizer, self.mesh, ema=self.config.ema_decay > 0)
    state, position = checkpoints.restore(step, like)
    expected = self._position(step)
    if position != expected:
      raise InputError(
        f"the checkpoint of step {step} in {self.workdir} stands at {position} in the data, "
        f"this run would stand at {expected}: it belongs to a different run"
      )
    return State(*state)

  def _position(self, step: int) -> dict:
    """The place in the data after `step` batches, and the start that the reference is.

    The order is a function of the seed alone, whatever the number of processes.
    """
    return {
      "next_batch": step,
      "batch_size": self.config.batch_size,
      "seed": self.config.seed,
      "base_weights": self.identity["base_weights"],
    }

  def _start_again(self):
    """The pipeline that the run started from, read anew, on the host."""
    pipeline = setup.load_pipeline(self.config, self.captions)
    if tree_checksum(pipeline.params) != self.identity["base_weights"]:
      raise InputError(
        f"config.pipeline {self.config.pipeline!r} has changed since the run started; put it back "
        "and start again: the run is complete but for its pipeline folder"
      )
    return pipeline

  def _steps(
    self, state: State, begun: int, checkpoints: Checkpoints, show_progress: bool
  ) -> tuple[State, float]:
    """Steps `begun` to `num_steps`, with metrics and checkpoints on the way."""
    from tqdm import tqdm

    total, every = self.config.num_steps, self.config.checkpoint.every
    frozen, reference = self.frozen, self.reference
    # Shapes, fields and hyperparameters are checked while it is traced, before anything compiles
    # and before the work directory belongs to this run.
    jitted = compile_step(self.step, self.mesh, state, frozen, reference)
    batch = self.feed[0]
    lowered = jitted.lower(state, frozen, reference, batch)
    if self.processes.is_first:
      write_fingerprint(self.workdir, self.identity)
    bar = tqdm(
      total=total, initial=begun, desc=self.workdir.name, unit="step", disable=not show_progress
    )
    if show_progress and self.feed.truncated:
      bar.write(f"{self.feed.truncated} captions are longer than the context and are cut")
    bar.set_postfix_str("compiling")
    step = lowered.compile()
    bar.unpause()
    self.monitor.start(begun, state, frozen, self.trained, batch)
    del self.trained  # where they are not the reference too, they are held for nothing now
    compiled = time.perf_counter()

    def record(index: int, metrics: dict, losses: jax.Array, ids: jax.Array) -> None:
      """Checks and writes what a step found; waits for that step."""
      row = {name: float(value) for name, value in metrics.items()}
      if not all(np.isfinite(row[k]) for k in ("loss", "gradient_norm", "parameter_norm")):
        # All processes come here, so the save that may still go on can be waited for.
        checkpoints.wait()
        raise self._not_finite(index, row, losses, ids, checkpoints.latest())
      checkpoints.check()
      self.monitor.record(index + 1, row)
      shown = {k: f"{row[k]:.4g}" for k in ("loss", "accuracy") if k in row}
      bar.set_postfix(shown, refresh=False)
      bar.update()

    def save() -> None:
      """Saves the state after the steps that are taken; nothing is saved before it is checked."""
      if pending:
        record(*pending)
      checkpoints.save(taken, state, self._position(taken))

    with contextlib.ExitStack() as held:
      batches = held.enter_context(contextlib.closing(self.feed.iterate(begun)))
      for shown in (bar, self.monitor):
        held.enter_context(contextlib.closing(shown))
      batches = self.monitor.time_batches(batches)
      taken, saved, pending = begun, begun, None  # pending: the last step, if it is not recorded
      while taken < total and not self.processes.should_stop(taken):
        self.monitor.before_step(taken)
        batch = next(batches)
        state, *found = step(state, frozen, reference, batch)
        self.monitor.after_step(found)
        if pending:  # looking one step back keeps the device busy
          record(*pending)
        taken, pending = taken + 1, (taken, *found, batch.example_id)
        if self.monitor.is_due(taken):
          record(*pending)
          pending = None
          self.monitor.evaluate(taken, state, frozen)
        if taken % every == 0 or taken == total:
          save()
          saved, pending = taken, None
      if saved < taken:  # preempted
        save()
      checkpoints.wait()
    if taken < total:
      self.processes.barrier()  # or a process that ends would end others before all is saved
      raise PreemptedError(
        f"preempted (SIGTERM) after step {taken} of {total}"
        + (", which is saved; the same command goes on from there" if taken else "")
      )
    return state, compiled

  def _not_finite(
    self,
    index: int,
    row: dict[str, float],
    losses: jax.Array,
    ids: jax.Array,
    saved: int | None,
  ) -> InputError:
    """The error for a step after which something is no number; its state is never saved."""
    losses, ids = on_host((losses, ids))
    bad = ~np.isfinite(losses)
    if bad.any():
      what, ids = f"the loss of {bad.sum()} of {bad.size} examples", ids[bad]
    else:
      what = next(name for name, value in row.items() if not np.isfinite(value))
    good = "no checkpoint was due before it" if saved is None else f"that of step {saved} is good"
    return InputError(
      f"step {index + 1}: {what} is not finite (examples with ids {ids[:20].tolist()}). Nothing of "
      f"this step was saved; of the checkpoints in {self.workdir / 'checkpoints'}, {good}. Lower "
      "the learning rate or beta, or look at those examples"
    )


def _read_summary(path: pathlib.Path) -> dict | None:
  return json.loads(path.read_text()) if path.exists() else None
