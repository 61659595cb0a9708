"""From a training state to a pipeline folder or a LoRA file."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax import interop, pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.training import setup
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.config import default
from dmpo_jax.training.objective import Params, adapt
from dmpo_jax.training.run_directory import read_run
from dmpo_jax.training.step import State, initial_state, make_optimizer

# Where a run leaves its LoRA; the file's name is the one that diffusers looks for.
LORA_FILE = pathlib.Path("lora") / "pytorch_lora_weights.safetensors"


def save_run(
  workdir: pathlib.Path,
  config: ConfigDict,
  state: State,
  load_start: Callable[[], interop.Pipeline],
  processes: Processes,
) -> None:
  """Writes pipeline/, and with LoRA lora/, into the directory of a run; all processes call this.

  What was trained comes to the host of the first process, and there alone is the pipeline read
  anew that the run started from.

  Args:
    workdir: Of the run.
    config: The run's.
    state: What it trained.
    load_start: Returns the pipeline that the run started from.
    processes: The processes of the run.
  """
  params = on_host(state.params if state.ema is None else state.ema, keep=processes.is_first)
  if not processes.is_first:
    return
  state, pipeline = State(0, params, None, None), load_start()
  save_trained(workdir / "pipeline", config, pipeline, state)
  if config.lora.rank:
    save_lora(workdir / LORA_FILE, config, pipeline, state)


def save_trained(
  folder: pathlib.Path,
  config: ConfigDict,
  pipeline: interop.Pipeline,
  state: State,
  **options: Any,
) -> None:
  """Writes a pipeline with what a state trained: its average where there is one, LoRAs merged.

  Args:
    folder: Where the pipeline is written.
    config: The run's.
    pipeline: The one that the run started from.
    state: The state whose parameters replace the pipeline's, or change them.
    **options: Those of `interop.save_pipeline`.
  """
  trained = _trained(state)
  if config.lora.rank:
    params = adapt(pipeline.params, trained, alpha=config.lora.alpha)
  else:
    params = {**pipeline.params, **trained}
  params = on_host(params)
  pipelines.save(folder, dataclasses.replace(pipeline, params=params), **options)


def save_lora(
  file: pathlib.Path, config: ConfigDict, pipeline: interop.Pipeline, state: State
) -> None:
  """Writes the LoRA that a state trained, its average where there is one; see `interop.save_lora`.

  Args:
    file: The target, called *.safetensors.
    config: The run's.
    pipeline: The one that the run started from.
    state: The state with the LoRA.
  """
  params = _trained(state)
  alphas = dict.fromkeys(params, config.lora.alpha)
  interop.save_lora(file, interop.Lora(params, alphas), pipeline.params)


def export(workdir: pathlib.Path, folder: pathlib.Path, *, ema: bool = True, **options: Any) -> int:
  """Writes the parameters of a run's last checkpoint as a pipeline; the run may still be going.

  Args:
    workdir: The directory of the run.
    folder: Where the pipeline is written; a LoRA is merged into it.
    ema: Whether to take the EMA weights, where the run has them.
    **options: Those of `interop.save_pipeline`: dtype, max_shard_size, variant.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: The directory holds no run or no checkpoint, the checkpoint cannot be read, or an
      option is not valid.
  """
  config = _config(workdir)
  step, pipeline, state = _read(workdir, config, ema)
  save_trained(folder, config, pipeline, state, **options)
  return step


def export_lora(workdir: pathlib.Path, file: pathlib.Path, *, ema: bool = True) -> int:
  """Writes the LoRA of a run's last checkpoint as a file for diffusers.

  Args:
    workdir: The directory of the run.
    file: The target, called *.safetensors.
    ema: Whether to take the EMA weights, where the run has them.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: As for `export`, or the run trains whole networks.
  """
  config = _config(workdir)
  if not config.lora.rank:
    raise InputError(f"{workdir} trains whole networks, no LoRA: export its pipeline")
  step, pipeline, state = _read(workdir, config, ema)
  save_lora(file, config, pipeline, state)
  return step


def _trained(state: State) -> Params:
  return on_host(state.params if state.ema is None else state.ema)


def _config(workdir: pathlib.Path) -> ConfigDict:
  """The config of a run; keys that it is too old to have are at their defaults."""
  return ConfigDict({**default().to_dict(), **read_run(workdir)["config"]})


def _read(
  workdir: pathlib.Path, config: ConfigDict, ema: bool
) -> tuple[int, interop.Pipeline, State]:
  """The last checkpoint's step, the pipeline that the run started from, and the state."""
  captions = [] if config.pipeline else setup.load_examples(config).captions
  pipeline = setup.load_pipeline(config, captions)
  trained, *_ = setup.split_params(config, pipeline)
  optimizer = make_optimizer(config.optimizer)
  checkpoints = Checkpoints(workdir / "checkpoints", keep=None, read_only=True)
  with contextlib.closing(checkpoints):
    step = checkpoints.latest()
    if step is None:
      raise InputError(f"{workdir} holds no checkpoint yet")
    like = initial_state(trained, optimizer, ema=config.ema_decay > 0)
    state = State(*checkpoints.restore(step, like)[0])
  return step, pipeline, state if ema else state._replace(ema=None)
