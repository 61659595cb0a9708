"""Monitoring of a run: metrics, timings, held-out evaluation, sample grids, a profile.

Nothing here changes a number that the run computes: the state is read, and no random draw of the
run is touched. All but the metrics may be switched on and off between two starts of a run.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import interop, models
from dmpo_jax.interop.pipeline import NETWORKS
from dmpo_jax.models import flops
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.monitor.held_out import Panel
from dmpo_jax.training.monitor.metrics import MetricsWriter, check_wandb, open_wandb
from dmpo_jax.training.monitor.sample_grids import Grid, write_grid
from dmpo_jax.training.monitor.throughput import Clock
from dmpo_jax.training.objective import Objective, Params
from dmpo_jax.training.step import State


class Monitor:
  """All that is written about a run. All processes call its methods alike, the first one writes.

  Args:
    config: A checked config.
    pipeline: The one that the run starts from.
    examples: Those that are trained on.
    objective: The run's.
    mesh: The run's.
    workdir: The run's directory.
    started: `time.perf_counter()` when the run was started.
    first: Whether this process writes.

  Raises:
    InputError: The held-out examples cannot be used, the prompts cannot be drawn, or W&B is asked
      for and not installed.
  """

  def __init__(
    self,
    config: ConfigDict,
    pipeline: interop.Pipeline,
    examples: setup.Data,
    objective: Objective,
    mesh: Mesh,
    workdir: pathlib.Path,
    *,
    started: float,
    first: bool,
  ):
    self._config, self._workdir, self._first = config, workdir, first
    self._started, self._mesh, self._configs = started, mesh, pipeline.configs
    self._writer: MetricsWriter | None = None
    self._profile = Profile(config.profile, workdir / "profile") if first else None
    check_wandb(config.wandb.project)
    if config.held_out.every:
      self._panel = Panel(config, pipeline, examples, objective, mesh, workdir, self._say)
    if config.samples.every:
      stored = [name for part in setup.stored(examples) for name in setup.RUN_FOR[part]]
      idle = {name: tree for name, tree in pipeline.params.items() if name in stored}
      self._grid = Grid(config, pipeline, objective.combine, mesh, idle)
      if self._grid.truncated:
        self._say("prompts of config.samples are longer than the context and are cut")

  def begin(self, begun: int, state: State, frozen: Params, initial: Params, batch: Batch) -> None:
    """Opens the files, measures the reference, looks at step 0; then steps are timed.

    Args:
      begun: Steps that are done.
      state: The state there.
      frozen: Parameters that are not trained.
      initial: What the run trained at step 0.
      batch: One of the run's, for its shapes.
    """
    config = self._config
    if self._first:
      run = open_wandb(config.wandb.project, self._workdir, config.to_dict())
      self._writer = MetricsWriter(self._workdir, step=begun, wandb=run)
    kind = self._mesh.devices.flat[0].device_kind
    peak = flops.peak(kind)
    if peak is None and kind != "cpu":  # nobody expects one of a CPU
      self._say(f"no mfu is recorded: the peak of {kind!r} is not in models/flops.py")
    self._clock = Clock(
      self._started,
      batch_size=config.batch_size,
      flops=example_flops(config, self._configs, batch),
      devices=self._mesh.size,
      peak=peak,
    )
    if config.held_out.every:
      places = jax.tree.map(lambda x: x.sharding, state.params)
      self._panel.begin(begun, jax.device_put(initial, places), frozen)
    if begun == 0:
      self.look(0, state, frozen)
    self._clock.restart(begun)

  def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; waiting for them is timed."""
    return self._clock.waiting(batches)

  def before_step(self, taken: int) -> None:
    """A step is about to be given to the devices, after so many others."""
    if self._profile is not None:
      self._profile.before(taken)

  def after_step(self, result: Any) -> None:
    """A step was given to the devices; `result` is what they will fill."""
    self._clock.sent(result)

  def record(self, done: int, row: Mapping[str, float]) -> None:
    """So many steps are known to be done; `row` is what the last of them found."""
    self._clock.done()
    if done % self._config.log_every == 0 or done == self._config.num_steps:
      timings = self._clock.lap(done)
      if self._writer is not None:
        self._writer.write(done, {**row, **timings})

  def due(self, done: int) -> bool:
    """Whether `look` has something to do after so many steps."""
    return self._due(self._config.held_out.every, done) or self._due(
      self._config.samples.every, done
    )

  def look(self, done: int, state: State, frozen: Params) -> None:
    """Writes a row of the panel and a grid, where they are due.

    Args:
      done: Steps that are done, and recorded.
      state: The state there.
      frozen: Parameters that are not trained.
    """
    with self._clock.paused():
      if self._due(self._config.held_out.every, done):
        self._panel.look(done, state.params, frozen, self._writer)
      if self._due(self._config.samples.every, done):
        picture = self._grid.picture(state.params if state.ema is None else state.ema, frozen)
        if self._writer is not None:
          write_grid(self._workdir / "samples", done, picture, self._config.samples.prompts)
          self._writer.write_image(done, "samples", picture)

  def close(self) -> None:
    """Ends the profile and closes all files."""
    if self._profile is not None:
      self._profile.close()
    if self._writer is not None:
      self._writer.close()

  def _due(self, every: int, done: int) -> bool:
    return every > 0 and (done % every == 0 or done == self._config.num_steps)

  def _say(self, line: str) -> None:
    """Shows a line to a person, above the progress bar."""
    from tqdm import tqdm

    if self._first:
      tqdm.write(line, file=sys.stderr)


class Profile:
  """jax's profiler over some steps of a run.

  Args:
    section: The config's `profile`.
    folder: Where the trace is written; TensorBoard and Perfetto read it.
  """

  def __init__(self, section: ConfigDict, folder: pathlib.Path):
    self._first, self._last = section.start, section.start + section.steps
    self._folder, self._running = folder, False

  def before(self, taken: int) -> None:
    """Starts or stops the trace; `taken` steps were given to the devices."""
    if not self._running and self._first <= taken < self._last:
      jax.profiler.start_trace(str(self._folder))
      self._running = True
    elif self._running and taken >= self._last:
      self.close()

  def close(self) -> None:
    """Ends a trace that is still running."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


def example_flops(
  config: ConfigDict, configs: Mapping[str, Mapping[str, Any]], batch: Batch
) -> int:
  """Model FLOPs of one example of a run, see `flops.per_example`.

  Args:
    config: A checked config.
    configs: The networks' configs, by component.
    batch: One of the run's, for its shapes.

  Returns:
    FLOPs.
  """
  encoded = []
  images, height, width = batch.images.shape[1], *batch.images.shape[-3:-1]
  if batch.images.ndim == 6:  # moments
    encoded += ["vae"]
    scale = models.build_autoencoder(configs["vae"]).downscale
    height, width = height * scale, width * scale
  if batch.embeddings is not None:
    encoded += [name for name in NETWORKS if name.startswith("text_encoder")]
  parts = flops.per_example(
    {name: found for name, found in configs.items() if name in NETWORKS},
    height=height,
    width=width,
    tokens=batch.input_ids.shape[1],
    images=images,
    trained=config.trained,
    reference=config.reference,
    lora=config.lora.rank > 0,
    encoded=encoded,
  )
  return sum(parts.values())
