"""A whole run: from a config to a trained pipeline in diffusers' format."""

import contextlib
import fcntl
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dmpo_jax.errors import InputError
from dmpo_jax.training import config as configs
from dmpo_jax.training import sharding, start
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.checkpoint import Checkpoints, checksums, claim, write_whole
from dmpo_jax.training.export import LORA_FILE, save_lora, save_trained
from dmpo_jax.training.metrics import MetricsWriter
from dmpo_jax.training.step import State, compile_step, make_optimizer, make_step, placed_state

# What may change between two starts of the same run: it changes no number that is computed, or, as
# the layout of the computation does, by rounding alone.
LAYOUT_KEYS = ("num_devices", "mesh", "accumulation", "remat")
FREE_KEYS = ("num_steps", "log_every", "checkpoint", *LAYOUT_KEYS)


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    pipeline: Folder in diffusers' format: the averaged parameters where there are any.
    steps: Optimizer steps taken over the whole life of the run.
    resumed_at: Step at which the last start of the run took up; 0 where it was the first.
    seconds: Wall-clock seconds of that last start.
    compile_seconds: Part of it until the train step was compiled.
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


def train(config: ConfigDict, workdir: pathlib.Path, *, show_progress: bool = True) -> Result:
  """Trains as a config says, from the last checkpoint in `workdir` if there is one.

  Killed at any moment and started again with the same arguments, it ends with the parameters and
  the metrics it would have had without the kill, bit for bit on the same machine.

  Args:
    config: See `dmpo_jax.training.config.default`.
    workdir: Directory of this run alone: run.json, checkpoints/, metrics.jsonl, tensorboard/, and
      at the end pipeline/, with LoRA lora/ too, and summary.json.
    show_progress: Whether to draw a progress bar.

  Returns:
    `Result`.

  Raises:
    InputError: The config, the data, the pipeline or the work directory cannot be used; or a loss
      is not finite (with the step and the examples; the last checkpoint stays).
  """
  config = configs.check(config)
  workdir = pathlib.Path(workdir)
  started = time.perf_counter()
  examples = start.load_examples(config)
  pipeline = start.load_pipeline(config, [] if config.pipeline else examples.captions)
  loader = start.make_loader(config, pipeline, examples)
  kept = {k: v for k, v in config.to_dict().items() if k not in FREE_KEYS}
  if config.pipeline and pathlib.Path(config.pipeline).is_dir():
    kept["pipeline"] = str(pathlib.Path(config.pipeline).absolute())
  identity = {
    "config": kept,
    "data": examples.fingerprint(),
    "start": _fingerprint(pipeline.params),
    "captions_truncated": loader.truncated,
  }
  with _only_user_of(workdir):
    run = _Run(config, pipeline, examples, loader, workdir, identity)
    return run.finish(started, show_progress)


class _Run:
  """A run with its files open."""

  def __init__(self, config, pipeline, examples, loader, workdir, identity):
    self.config, self.pipeline, self.loader = config, pipeline, loader
    self.workdir, self.identity = workdir, identity
    if (workdir / "run.json").exists():
      claim(workdir, identity)
    self.trained, self.frozen, self.reference = start.split_params(config, pipeline, examples)
    self.mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    sharding.check_batch(self.mesh, config.batch_size, config.accumulation)
    objective = start.make_objective(config, pipeline, examples, mesh=self.mesh)
    optimizer = make_optimizer(config.optimizer)
    self.initial = functools.partial(
      placed_state, self.trained, optimizer, self.mesh, ema=config.ema_decay > 0
    )
    self.step = make_step(
      objective,
      optimizer,
      ema_decay=config.ema_decay,
      accumulation=config.accumulation,
      constrain=functools.partial(sharding.constrain, self.mesh),
    )
    self.split = sharding.batch(self.mesh)

  def batch(self, index: int) -> Batch:
    return Batch(**self.loader[index])

  def finish(self, started: float, show_progress: bool) -> Result:
    """Takes the steps that are missing and writes the pipeline and the summary."""
    total, summary = self.config.num_steps, self.workdir / "summary.json"
    checkpoints = Checkpoints(self.workdir / "checkpoints", keep=self.config.checkpoint.keep)
    with contextlib.closing(checkpoints):
      begun = checkpoints.latest() or 0
      if begun > total:
        raise InputError(f"{self.workdir} is at step {begun}, past config.num_steps {total}")
      if begun == total and summary.exists():
        found = Result(**json.loads(summary.read_text()))
        if found.steps == total:
          return found._replace(pipeline=self.workdir / "pipeline")
      with jax.set_mesh(self.mesh):
        state = self.initial()
        if begun:
          state = self._restore(checkpoints, begun, state)
        compiled = time.perf_counter()
        if begun < total:
          state, compiled = self._steps(state, begun, checkpoints, show_progress)
      ended = time.perf_counter()
      save_trained(self.workdir / "pipeline", self.config, self.pipeline, state)
      if self.config.lora.rank:
        save_lora(self.workdir / LORA_FILE, self.config, self.pipeline, state)
    result = Result(
      pipeline=self.workdir / "pipeline",
      steps=total,
      resumed_at=begun,
      seconds=ended - started,
      compile_seconds=compiled - started,
      examples_per_second=(total - begun) * self.config.batch_size / (ended - compiled),
      captions_truncated=self.identity["captions_truncated"],
    )
    write_whole(summary, json.dumps({**result._asdict(), "pipeline": str(result.pipeline)}))
    return result

  def _restore(self, checkpoints: Checkpoints, step: int, like: State) -> State:
    state, position = checkpoints.restore(step, like)
    expected = self._position(step)
    if position != expected:
      raise InputError(
        f"the checkpoint of step {step} in {self.workdir} stands at {position} in the data, "
        f"this run would stand at {expected}: it belongs to a different run"
      )
    return State(*state)

  def _position(self, step: int) -> dict:
    """The place in the data after `step` batches; the order is a function of the seed alone."""
    return {"next_batch": step, "batch_size": self.config.batch_size, "seed": self.config.seed}

  def _steps(
    self, state: State, begun: int, checkpoints: Checkpoints, show_progress: bool
  ) -> tuple[State, float]:
    """Steps `begun` to `num_steps`, with metrics and checkpoints on the way."""
    from tqdm import tqdm

    total, every = self.config.num_steps, self.config.checkpoint.every
    frozen, reference = (
      jax.device_put(tree, sharding.shardings(self.mesh, tree))
      for tree in (self.frozen, self.reference)
    )
    # Shapes, fields and hyperparameters are checked while it is traced, before anything compiles
    # and before the work directory belongs to this run.
    jitted = compile_step(self.step, self.mesh, state, frozen, reference)
    lowered = jitted.lower(state, frozen, reference, jax.device_put(self.batch(0), self.split))
    claim(self.workdir, self.identity)
    bar = tqdm(
      total=total, initial=begun, desc=self.workdir.name, unit="step", disable=not show_progress
    )
    if show_progress and self.loader.truncated:
      bar.write(f"{self.loader.truncated} captions are longer than the context and are cut")
    bar.set_postfix_str("compiling")
    step = lowered.compile()
    bar.unpause()
    compiled = time.perf_counter()
    writer = MetricsWriter(self.workdir, step=begun)

    def record(index: int, metrics: dict, example_losses: jax.Array) -> None:
      """Checks and writes what a step found; waits for that step."""
      self._check_finite(index, example_losses, metrics)
      done = index + 1
      if done % self.config.log_every == 0 or done == total:
        row = {name: float(value) for name, value in metrics.items()}
        writer.write(done, row)
        shown = {k: f"{row[k]:.4g}" for k in ("loss", "accuracy") if k in row}
        bar.set_postfix(shown, refresh=False)
      bar.update()

    batches = self.loader.iterate(begun)
    with contextlib.closing(writer), contextlib.closing(bar), contextlib.closing(batches):
      pending = None
      for index in range(begun, total):
        batch = jax.device_put(Batch(**next(batches)), self.split)
        state, *found = step(state, frozen, reference, batch)
        if pending:  # looking one step back keeps the device busy
          record(*pending)
        pending = (index, *found)
        done = index + 1
        if done % every == 0 or done == total:
          record(*pending)
          pending = None
          checkpoints.save(done, state, self._position(done))
      checkpoints.wait()
    return state, compiled

  def _check_finite(self, index: int, example_losses: jax.Array, metrics: dict) -> None:
    """Stops where something is no number: the state that such a step made is never saved."""
    bad = ~np.isfinite(np.asarray(example_losses))
    norms = [k for k in ("gradient_norm", "parameter_norm") if not np.isfinite(float(metrics[k]))]
    if not bad.any() and not norms:
      return
    ids = self.batch(index).example_id
    what = f"the loss of {bad.sum()} of {bad.size} examples" if bad.any() else norms[0]
    raise InputError(
      f"step {index + 1}: {what} is not finite (examples with ids "
      f"{(ids[bad] if bad.any() else ids)[:20].tolist()}). Nothing of this step was saved; the "
      f"last checkpoint in {self.workdir / 'checkpoints'} is good. Lower the learning rate or "
      "beta, or look at those examples"
    )


@contextlib.contextmanager
def _only_user_of(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a lock on the work directory; a second process that trains in it is refused."""
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / "lock").open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise InputError(f"another process is training in {workdir}; wait, or use another") from error
    yield


def _fingerprint(params) -> str:
  """A digest of parameters: of their names and the CRC-32 of their bytes."""
  return hashlib.sha256(repr(sorted(checksums(params).items())).encode()).hexdigest()[:16]
