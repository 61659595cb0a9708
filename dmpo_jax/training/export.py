"""From a training state to a pipeline folder."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from dmpo_jax.training import start
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.step import State, initial_state, make_optimizer


def save_trained(
  folder: pathlib.Path, pipeline: interop.Pipeline, state: State, **options: Any
) -> None:
  """Writes a pipeline with a state's trained components: their average where there is one.

  Args:
    folder: Where the pipeline is written.
    pipeline: The one that the run started from.
    state: The state whose parameters replace the pipeline's.
    **options: Those of `interop.save_pipeline`.
  """
  trained = jax.device_get(state.params if state.ema is None else state.ema)
  params = {**pipeline.params, **trained}
  interop.save_pipeline(folder, dataclasses.replace(pipeline, params=params), **options)


def export(
  workdir: pathlib.Path, folder: pathlib.Path, *, average: bool = True, **options: Any
) -> int:
  """Writes the parameters of a run's last checkpoint as a pipeline; the run may still be going.

  Args:
    workdir: The directory of the run.
    folder: Where the pipeline is written.
    average: Whether to take the moving average, where the run keeps one.
    **options: Those of `interop.save_pipeline`: dtype, max_shard_size, variant.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: The directory holds no run or no checkpoint, the checkpoint cannot be read, or an
      option is not valid.
  """
  path = workdir / "run.json"
  if not path.is_file():
    raise InputError(f"{workdir} is no directory of a run: it has no run.json")
  config = ConfigDict(json.loads(path.read_text())["config"])
  captions = [] if config.pipeline else start.load_examples(config).captions
  pipeline = start.load_pipeline(config, captions)
  trained = {name: pipeline.params[name] for name in config.trained}
  optimizer = make_optimizer(config.optimizer)
  checkpoints = Checkpoints(workdir / "checkpoints", keep=None, read_only=True)
  with contextlib.closing(checkpoints):
    step = checkpoints.latest()
    if step is None:
      raise InputError(f"{workdir} holds no checkpoint yet")
    like = initial_state(trained, optimizer, ema=config.ema_decay > 0)
    state = State(*checkpoints.restore(step, like)[0])
  save_trained(folder, pipeline, state if average else state._replace(ema=None), **options)
  return step
