"""A scorer's training run: from preference pairs to a CLIP model in transformers' format."""

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError, PreemptedError
from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.reward import config as configs
from dmpo_jax.reward import held_out as held_outs
from dmpo_jax.reward import model as scorer_models
from dmpo_jax.reward import objective
from dmpo_jax.reward.objective import SCORER
from dmpo_jax.training import setup
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.device_batches import DeviceBatches, check_devices
from dmpo_jax.training.loop import Hooks, StepResult, take_steps
from dmpo_jax.training.monitor.metrics import MetricsWriter, open_wandb
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.resume import position, record_versions, restore, to_saved, versions
from dmpo_jax.training.run_directory import check_fingerprint, run_lock, write_fingerprint
from dmpo_jax.training.step import (
  State,
  abstract_state,
  compile_step,
  make_step,
  sharded_initial_state,
)

LOGGER = logging.getLogger(__name__)
FOLDER, SUMMARY = "scorer", "scorer.json"
# Keys that may change between two starts of a run, see `training.run`.
MUTABLE_KEYS = ("num_steps", "checkpoint", "held_out", "log_every", "wandb", "num_devices", "mesh")


class Result(NamedTuple):
  """Summary of a run.

  Attributes:
    folder: Folder of the scorer with the trained parameters, the EMA where there is one.
    steps: Optimizer steps of the run.
    held_out: See `held_out.summarise`; None without a held-out split.
  """

  folder: paths.Path
  steps: int
  held_out: dict[str, Any] | None


def train(
  config: ConfigDict,
  workdir: paths.Path,
  *,
  show_progress: bool = True,
  processes: Processes | None = None,
) -> Result:
  """Trains a scorer as a config says, from the last checkpoint in `workdir` if there is one.

  Steps, checkpoints, sharding and resume are those of `training.run`: a run that was killed ends
  with the parameters of an uninterrupted one, bit for bit on the same machines in the same layout.

  Args:
    config: See `reward.config.default`.
    workdir: Directory of this run alone: run.json, checkpoints/, metrics/,
      tensorboard/, and at the end scorer/ and scorer.json. All processes share it.
    show_progress: Whether to show a progress bar.
    processes: The processes of the run, all of which call this; None: this one alone.

  Returns:
    `Result`.

  Raises:
    InputError: The config, the data, the model or the work directory cannot be used, or a loss is
      not finite.
    OSError: A file could not be written.
    PreemptedError: A process received SIGTERM.
  """
  config, workdir = configs.check(config), paths.parse(workdir)
  processes = processes or Processes()
  with processes.preemption_handler(), run_lock(workdir, processes) as check_lock:
    mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    sharding.check_batch(mesh, config.batch_size, 1)
    check_devices(mesh)

    examples = setup.load_examples(config)
    model = scorer_models.load(config, [] if config.pretrained else examples.captions)
    if examples.size != model.image_size:
      raise InputError(
        f"config.data.size is {examples.size}, and the model's image_size {model.image_size}; set "
        "the first to the second"
      )
    loader = functools.partial(
      examples.loader, model.tokenize, channels=3, batch_size=config.batch_size, seed=config.seed
    )
    batches = DeviceBatches(loader, config.batch_size, sharding.batch(mesh))
    pairs = _held_out_pairs(config, model)
    fingerprint = {
      "config": {k: v for k, v in config.to_dict().items() if k not in MUTABLE_KEYS},
      "data": examples.fingerprint(),
      "base_weights": tree_checksum({SCORER: model.params}),
      "captions_truncated": batches.truncated,
    }
    processes.assert_equal("run", fingerprint)
    processes.assert_equal("version", versions())
    if processes.is_first:
      check_fingerprint(workdir, fingerprint)

    clip, dtype = objective.build(model.config, mesh), jnp.dtype(config.dtype)
    step = make_step(
      objective.make_objective(
        clip,
        model.normalisation,
        seed=config.seed,
        shift=config.shift,
        label_smoothing=config.label_smoothing,
        dtype=dtype,
      ),
      make_optimizer(config.optimizer),
      ema_decay=config.ema_decay,
      constrain=functools.partial(sharding.constrain, mesh),
    )
    scores = held_outs.make_scores(clip, model.normalisation, mesh, dtype)
    run = _Run(config, workdir, processes, fingerprint, scores, pairs, check_lock)
    state = _train(run, mesh, step, batches, model.params, show_progress)
    return _export(run, state, model)


@dataclasses.dataclass
class _Run:
  """Objects that the parts of a run share."""

  config: ConfigDict
  workdir: paths.Path
  processes: Processes
  fingerprint: dict[str, Any]
  scores: Any
  pairs: held_outs.HeldOut | None
  check_lock: Callable[[], None]

  def position(self, step: int) -> dict[str, Any]:
    return position(self.config, self.fingerprint["base_weights"], step)

  def evaluate(self, state: State) -> dict[str, Any]:
    params = state.params if state.ema is None else state.ema
    return held_outs.evaluate(self.scores, params, self.pairs)


def _held_out_pairs(
  config: ConfigDict, model: scorer_models.ScorerModel
) -> held_outs.HeldOut | None:
  if not config.held_out.split:
    return None
  folder = config.data.get("folder")
  if not folder:
    raise InputError(
      "config.held_out.split is a split of config.data.folder; with several folders leave it empty"
    )
  return held_outs.load(
    paths.parse(folder), config.held_out.split, size=model.image_size, tokenize=model.tokenize
  )


def _train(run: _Run, mesh, step, batches: DeviceBatches, params, show_progress: bool) -> State:
  """The state after the last step."""
  config, workdir, processes = run.config, run.workdir, run.processes
  total, optimizer = config.num_steps, make_optimizer(config.optimizer)
  trained = {SCORER: params}
  trained = sharding.put(trained, sharding.shardings(mesh, trained))
  ema = config.ema_decay > 0
  checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
  with processes.closing(checkpoints), jax.set_mesh(mesh):
    first = processes.broadcast(checkpoints.latest() or 0)
    if first > total:
      raise InputError(f"{workdir} is at step {first}, past config.num_steps {total}")
    if first:
      LOGGER.info("resuming from step %d of %d", first, total)
      like = abstract_state(trained, optimizer, mesh, ema=ema)
      state = restore(checkpoints, first, like, run.position(first))
    else:
      state = sharded_initial_state(trained, optimizer, mesh, ema=ema)
    if first == total:
      return state
    del trained
    compiled = (
      compile_step(step, mesh, state, {}, None).lower(state, {}, None, batches[0]).compile()
    )
    writer = None
    with contextlib.ExitStack() as stack:
      if processes.is_first:
        write_fingerprint(workdir, run.fingerprint)
        record_versions(workdir, first)
        wandb = open_wandb(config.wandb.project, workdir, config.to_dict())
        writer = MetricsWriter(workdir, step=first, wandb=wandb)
        stack.callback(writer.close)
      bar = tqdm(
        total=total, initial=first, desc=workdir.name, unit="step", disable=not show_progress
      )
      stack.enter_context(contextlib.closing(bar))
      iterator = stack.enter_context(contextlib.closing(batches.iterate(first)))
      hooks = _Hooks(run, checkpoints, writer, bar)
      state, done = take_steps(
        state,
        iterator,
        total - first,
        step=compiled,
        frozen={},
        reference=None,
        first=first,
        hooks=hooks,
      )
      if done > first and checkpoints.last_saved != done:  # preempted
        hooks.save(done, state)
      checkpoints.wait()
    if done < total:
      processes.barrier()
      raise PreemptedError(
        f"preempted (SIGTERM) after step {done} of {total}"
        + (", which is saved; the same command resumes there" if done else "")
      )
    return state


class _Hooks(Hooks):
  """Progress bar, metrics, held-out evaluation and checkpoints of a run."""

  def __init__(self, run: _Run, checkpoints: Checkpoints, writer: MetricsWriter | None, bar: tqdm):
    self._run, self._checkpoints, self._writer, self._bar = run, checkpoints, writer, bar

  def should_stop(self, step: int) -> bool:
    return self._run.processes.should_stop(step)

  def record(self, result: StepResult) -> None:
    metrics = {name: float(value) for name, value in result.metrics.items()}
    if not all(map(np.isfinite, metrics.values())):
      self._checkpoints.wait()
      bad = ~np.isfinite(on_host(result.losses))
      ids = on_host(result.example_id)[bad][:20].tolist()
      raise InputError(
        f"step {result.step}: the loss, gradient or parameters are not finite (examples with ids "
        f"{ids}). Nothing of this step was saved; lower the learning rate, or look at those pairs"
      )
    self._checkpoints.check()
    if self._writer is not None and result.step % self._run.config.log_every == 0:
      self._writer.write(result.step, metrics)
    shown = {name: f"{metrics[name]:.4g}" for name in ("loss", "accuracy")}
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update()

  def is_due(self, step: int) -> bool:
    return self._is_saved(step) or self._is_evaluated(step)

  def at(self, step: int, state: State) -> None:
    if self._is_evaluated(step):
      record = self._run.evaluate(state)
      if self._writer is not None:
        self._writer.write_held_out(step, {**record, "bins": []})
        LOGGER.info("step %d: held-out %s", step, describe(record))
    if self._is_saved(step):
      self.save(step, state)

  def save(self, step: int, state: State) -> None:
    self._run.check_lock()
    if self._writer is not None:
      self._writer.flush()  # before the checkpoint: a resumed run does not repeat these steps
    self._checkpoints.save(step, to_saved(state), self._run.position(step))

  def _is_saved(self, step: int) -> bool:
    config = self._run.config
    return step % config.checkpoint.every == 0 or step == config.num_steps

  def _is_evaluated(self, step: int) -> bool:
    every = self._run.config.held_out.every
    return self._run.pairs is not None and every > 0 and step % every == 0


def _export(run: _Run, state: State, model: scorer_models.ScorerModel) -> Result:
  """Writes the scorer's folder and summary."""
  record = None if run.pairs is None else run.evaluate(state)
  params = state.params if state.ema is None else state.ema
  params = on_host(params, keep=run.processes.is_first)
  folder = run.workdir / FOLDER
  if run.processes.is_first:
    scorer_models.save(folder, dataclasses.replace(model, params=params[SCORER]))
    summary = {"steps": run.config.num_steps, "held_out": record}
    write_atomically(run.workdir / SUMMARY, json.dumps(summary, indent=1) + "\n")
  run.processes.barrier()
  return Result(folder, run.config.num_steps, record)


def describe(record: dict[str, Any]) -> str:
  """A held-out record in words."""
  return (
    f"accuracy {100 * record['accuracy']:.1f}% [{100 * record['accuracy_low']:.1f}, "
    f"{100 * record['accuracy_high']:.1f}] on {record['pairs']} pairs of {record['captions']} "
    f"captions, loss {record['loss']:.4f}"
  )
