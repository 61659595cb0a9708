"""A training run: from a config to a trained pipeline in diffusers' format."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from dmpo_jax import interop
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, PreemptedError
from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.training import config as configs
from dmpo_jax.training import reference as references
from dmpo_jax.training import setup
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.device_batches import DeviceBatches, check_devices
from dmpo_jax.training.export import check_base_weights, save_run
from dmpo_jax.training.goodput import Goodput
from dmpo_jax.training.loop import take_steps
from dmpo_jax.training.monitor.alarms import AlarmStop
from dmpo_jax.training.monitor.monitor import Monitor
from dmpo_jax.training.monitor.monitored_run import MonitoredRun
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.results import PIPELINE, Result, read_summary, write_summary
from dmpo_jax.training.resume import (
  position,
  record_versions,
  restore_with_alarms,
  to_saved,
  versions,
)
from dmpo_jax.training.run_directory import (
  check_base_pipeline,
  check_fingerprint,
  run_lock,
  write_fingerprint,
)
from dmpo_jax.training.run_hooks import RunHooks
from dmpo_jax.training.step import (
  State,
  abstract_state,
  compile_step,
  sharded_initial_state,
)
from dmpo_jax.training.stop import read_stop, remove_stop, stop_record, stopped_error, write_stop

LOGGER = logging.getLogger(__name__)

# Keys that may change between two starts of a run: they change no number, or, as the layout of the
# computation, change numbers by rounding alone. All others are part of the run's fingerprint.
LAYOUT_KEYS = ("num_devices", "mesh", "grad_accumulation_steps", "remat")
MONITOR_KEYS = ("evaluation", "health", "held_out", "log_every", "profile", "samples", "wandb")
MUTABLE_KEYS = ("num_steps", "checkpoint", *MONITOR_KEYS, *LAYOUT_KEYS)


def train(
  config: ConfigDict,
  workdir: paths.Path,
  *,
  show_progress: bool = True,
  processes: Processes | None = None,
) -> Result:
  """Trains as a config says, from the last checkpoint in `workdir` if there is one.

  Killed at any moment and started again with the same arguments, a run ends with the parameters and
  metrics of an uninterrupted one, bit for bit on the same machines in the same layout. After
  SIGTERM it finishes its step, saves and raises PreemptedError.

  Args:
    config: See `dmpo_jax.training.config.default`.
    workdir: Directory of this run alone, local or in a bucket: run.json, checkpoints/, metrics/,
      goodput.json, tensorboard/, the files of docs/monitoring.md, and at the end pipeline/, with
      LoRA lora/ too, and summary.json. All processes share it.
    show_progress: Whether to show a progress bar.
    processes: The processes of the run, all of which call this; None: this one alone.

  Returns:
    `Result`.

  Raises:
    InputError: The config, the data, the pipeline or the work directory cannot be used, or differs
      between processes; or a loss is not finite (the message names step and examples; the last
      checkpoint stays).
    OSError: A checkpoint could not be written.
    PreemptedError: A process received SIGTERM.
    StoppedError: An alarm of config.health.stop ended the run; its results are those of the last
      checkpoint before the alarm.
  """
  start_time, goodput = time.perf_counter(), Goodput()
  config, workdir = configs.check(config), paths.parse(workdir)
  paths.check_holds_checkpoints(workdir)
  processes = processes or Processes()
  total = config.num_steps
  with contextlib.ExitStack() as outer:
    outer.enter_context(processes.preemption_handler())
    check_lock = outer.enter_context(run_lock(workdir, processes))
    outer.enter_context(contextlib.closing(goodput))
    # Mesh.
    check_base_pipeline(config.pipeline, workdir)
    mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    sharding.check_batch(mesh, config.batch_size, config.grad_accumulation_steps)
    check_devices(mesh)
    shardings = functools.partial(sharding.shardings, mesh)

    # Data and pipeline.
    examples = setup.load_examples(config)
    captions = [] if config.pipeline else examples.captions
    pipeline = setup.load_pipeline(config, captions, shardings=shardings)
    loaders = setup.make_loaders(config, pipeline, examples)
    batches = DeviceBatches(loaders, config.batch_size, sharding.batch(mesh))

    # One run per work directory, the same in all processes.
    fingerprint = run_fingerprint(config, examples, pipeline, batches.truncated)
    processes.assert_equal("run", fingerprint)
    processes.assert_equal("version", versions())
    processes.assert_equal("config", {key: config.to_dict()[key] for key in MUTABLE_KEYS})
    if processes.is_first:
      check_fingerprint(workdir, fingerprint)

    # Step.
    objective = setup.make_objective(config, pipeline, examples, mesh=mesh)
    objective = objective._replace(starts_at_reference=True)  # as split_params makes the policy
    trained, frozen, reference = (
      sharding.put(tree, shardings(tree)) for tree in setup.split_params(config, pipeline, examples)
    )
    optimizer = make_optimizer(config.optimizer)
    update = references.from_config(config.reference)
    step = setup.make_train_step(config, objective, optimizer, mesh)
    monitor = Monitor(
      MonitoredRun(config, pipeline, examples, objective, mesh, workdir),
      start_time=start_time,
      is_first=processes.is_first,
      broadcast=processes.broadcast,
      goodput=goodput,
    )
    del pipeline  # or its parameters would stay in memory beside those of the state

    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    with processes.closing(checkpoints), jax.set_mesh(mesh):
      # Restore.
      first = processes.broadcast(checkpoints.latest() or 0)
      if first > total:
        raise InputError(f"{workdir} is at step {first}, past config.num_steps {total}")
      complete = processes.broadcast(read_summary(workdir, total) if processes.is_first else None)
      if complete is not None:
        return Result(workdir / PIPELINE, **complete)
      copies = {"ema": config.ema_decay > 0, "reference": update.moves}
      like = abstract_state(trained, optimizer, mesh, **copies)
      load_state = functools.partial(_restore, config, fingerprint, checkpoints, like)
      stop = None
      if first < total:
        stop = processes.broadcast(read_stop(workdir, config) if processes.is_first else None)
      if first:
        LOGGER.info("resuming from step %d of %d", first, total)
        with goodput.part("restore"):
          state, alarms = load_state(first)
        monitor.alarms.restore(alarms)
      else:
        state = sharded_initial_state(trained, optimizer, mesh, **copies)

      # Loop.
      loop_time = time.perf_counter()
      done = first
      if first < total and stop is None:
        # Tracing checks shapes, fields and hyperparameters before anything compiles, and before the
        # work directory belongs to this run.
        batch = batches[0]
        with goodput.part("compile"):
          lowered = compile_step(step, mesh, state, frozen, reference).lower(
            state, frozen, reference, batch
          )
        if processes.is_first:
          write_fingerprint(workdir, fingerprint)
          record_versions(workdir, first)
          remove_stop(workdir)
          goodput.begin(workdir, first)
        if processes.is_first and batches.truncated:
          LOGGER.warning("%d captions are longer than the context and are cut", batches.truncated)
        with contextlib.ExitStack() as stack:
          bar = tqdm(
            total=total,
            initial=first,
            desc=workdir.name,
            unit="step",
            postfix="compiling",
            disable=not show_progress,
          )
          iterator = stack.enter_context(contextlib.closing(batches.iterate(first)))
          stack.enter_context(contextlib.closing(bar))
          stack.enter_context(contextlib.closing(monitor))
          compile_start = time.perf_counter()
          with goodput.part("compile"):
            compiled = lowered.compile()
          LOGGER.debug("compiled in %.1f s", time.perf_counter() - compile_start)
          bar.unpause()
          monitor.start(first, state, frozen, trained, batch)
          del trained, batch  # or the initial parameters would stay in memory
          loop_time = time.perf_counter()
          save = functools.partial(
            _save, config, fingerprint, checkpoints, monitor, goodput, check_lock
          )
          hooks = RunHooks(config, processes, checkpoints, monitor, bar, frozen, save, check_lock)
          try:
            with goodput.part("steps"):
              state, done = take_steps(
                state,
                monitor.time_batches(iterator),
                total - first,
                step=compiled,
                frozen=frozen,
                reference=reference,
                first=first,
                hooks=hooks,
              )
          except AlarmStop as alarm:  # in all processes at the same step
            stop = stop_record(config, alarm)
          else:
            if done > first and checkpoints.last_saved != done:  # preempted
              save(done, state)
          with goodput.part("save"):
            checkpoints.wait()
          if checkpoints.last_saved == done:
            goodput.saved(done)
        if stop is None and done < total:
          processes.barrier()  # a process that ends would end others before all is saved
          raise PreemptedError(
            f"preempted (SIGTERM) after step {done} of {total}"
            + (", which is saved; the same command resumes there" if done else "")
          )
        if stop is not None:
          done = processes.broadcast(checkpoints.latest() or 0)
          state = load_state(done)[0] if done else None
      end_time = time.perf_counter()

    # Export.
    if done and (stop is None or not processes.broadcast(_is_complete(workdir, done, processes))):
      load = functools.partial(load_base_pipeline, config, captions, fingerprint["base_weights"])
      if processes.is_first:
        goodput.begin(workdir, done)
      with goodput.part("export"):
        save_run(workdir, config, state, load, processes)
    result = Result(
      pipeline=workdir / PIPELINE,
      steps=done,
      resumed_at=first,
      seconds=end_time - start_time,
      compile_seconds=loop_time - start_time,
      examples_per_second=(done - first) * config.batch_size / (end_time - loop_time),
      captions_truncated=batches.truncated,
    )
    if processes.is_first and done:
      with goodput.part("export"):
        write_summary(workdir, result)
    if processes.is_first and stop is not None:
      write_stop(workdir, stop)
    processes.barrier()
    if stop is not None:
      raise stopped_error(stop, done, workdir / PIPELINE)
    return result


def run_fingerprint(
  config: ConfigDict, examples: setup.Data, pipeline: interop.Pipeline, truncated: int
) -> dict[str, Any]:
  """Everything that makes a run this run, in JSON.

  Args:
    config: A checked config; `MUTABLE_KEYS` are left out.
    examples: The data set.
    pipeline: The pipeline that the run starts from, with its parameters.
    truncated: Captions that are cut.

  Returns:
    "config", "data" and "base_weights" (checksums) and "captions_truncated".
  """
  fixed = {key: value for key, value in config.to_dict().items() if key not in MUTABLE_KEYS}
  if config.pipeline and paths.parse(config.pipeline).is_dir():
    fixed["pipeline"] = str(paths.parse(config.pipeline).absolute())
  return {
    "config": fixed,
    "data": examples.fingerprint(),
    "base_weights": tree_checksum(pipeline.params),
    "captions_truncated": truncated,
  }


def load_base_pipeline(
  config: ConfigDict, captions: list[str], base_weights: str
) -> interop.Pipeline:
  """The pipeline that a run started from, on the host.

  Args:
    config: A checked config.
    captions: Captions of the data, from which a new pipeline's vocabulary is made.
    base_weights: Checksum of its parameters, from `run_fingerprint`.

  Raises:
    InputError: The pipeline has other parameters now.
  """
  pipeline = setup.load_pipeline(config, captions)
  check_base_weights(config, pipeline, base_weights)
  return pipeline


def _is_complete(workdir: paths.Path, step: int, processes: Processes) -> bool:
  """Whether the results of a step are in the work directory; False in all but the first process."""
  return processes.is_first and read_summary(workdir, step) is not None


def _restore(
  config: ConfigDict,
  fingerprint: dict[str, Any],
  checkpoints: Checkpoints,
  like: State,
  step: int,
) -> tuple[State, dict[str, Any]]:
  expected = position(config, fingerprint["base_weights"], step)
  return restore_with_alarms(checkpoints, step, like, expected)


def _save(
  config: ConfigDict,
  fingerprint: dict[str, Any],
  checkpoints: Checkpoints,
  monitor: Monitor,
  goodput: Goodput,
  check_lock: Callable[[], None],
  step: int,
  state: State,
) -> None:
  check_lock()
  monitor.flush()  # before the checkpoint: a resumed run does not repeat these steps
  data = {**position(config, fingerprint["base_weights"], step), "alarms": monitor.alarms.state()}
  with goodput.part("save"):
    checkpoints.save(step, to_saved(state), data)
  goodput.saved(step)
