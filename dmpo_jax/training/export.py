"""From trained parameters to a pipeline folder or a LoRA file."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from dmpo_jax import interop, pipelines
from dmpo_jax.common import files, paths
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.pipelines import Params
from dmpo_jax.training import reference as references
from dmpo_jax.training import setup
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.objective import adapt
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.results import KOHYA_FILE, LORA_FILE, PIPELINE
from dmpo_jax.training.resume import position, restore
from dmpo_jax.training.run_directory import DAMAGED, RUN_FILE, read_run, run_config
from dmpo_jax.training.step import State, initial_state

# Weights of a checkpoint that can be exported: the EMA where the run has one, the last ones, and
# the reference where it moves.
WEIGHTS = ("ema", "last", "reference")
WRITERS = {"diffusers": interop.save_lora, "kohya": interop.save_kohya_lora}


def save_run(
  workdir: paths.Path,
  config: ConfigDict,
  state: State,
  load_base: Callable[[], interop.Pipeline],
  processes: Processes,
) -> None:
  """Writes pipeline/, and with LoRA lora/, into a work directory.

  All processes call this. Parameters are gathered on the host of the first one, which alone loads
  the base pipeline and writes.

  Args:
    workdir: Work directory.
    config: The run's config.
    state: The state at the end of the run.
    load_base: Returns the pipeline that the run started from.
    processes: The processes of the run.
  """
  trained = on_host(_export_params(state), keep=processes.is_first)
  if not processes.is_first:
    return
  pipeline = load_base()
  save_pipeline(workdir / PIPELINE, config, pipeline, trained)
  if config.lora.rank:
    save_lora(workdir / LORA_FILE, config, pipeline, trained)
    if interop.kohya_holds(trained):
      save_lora(workdir / KOHYA_FILE, config, pipeline, trained, form="kohya")


def save_pipeline(
  folder: paths.Path,
  config: ConfigDict,
  pipeline: interop.Pipeline,
  trained: Params,
  **options: Any,
) -> None:
  """Writes a pipeline with trained parameters; LoRAs are merged.

  Args:
    folder: The target folder.
    config: The run's config.
    pipeline: The pipeline that the run started from.
    trained: Trained components, or LoRAs of some.
    **options: Those of `interop.save_pipeline`: dtype, max_shard_size, variant.
  """
  if config.lora.rank:
    params = adapt(pipeline.params, trained, alpha=config.lora.alpha)
  else:
    params = {**pipeline.params, **trained}
  pipelines.save(folder, dataclasses.replace(pipeline, params=on_host(params)), **options)


def save_lora(
  file: paths.Path,
  config: ConfigDict,
  pipeline: interop.Pipeline,
  trained: Params,
  *,
  form: str = "diffusers",
  dtype: str | None = None,
) -> None:
  """Writes trained LoRAs as a file; see `interop.save_lora` and `interop.save_kohya_lora`.

  Args:
    file: The target, named *.safetensors.
    config: The run's config.
    pipeline: The pipeline that the run started from.
    trained: Component -> LoRA.
    form: Key of `WRITERS`.
    dtype: Dtype of the file; None: that of the parameters.
  """
  alphas = dict.fromkeys(trained, config.lora.alpha)
  WRITERS[form](file, interop.Lora(trained, alphas), pipeline.params, dtype=dtype)


def export(workdir: paths.Path, folder: paths.Path, *, weights: str = "ema", **options: Any) -> int:
  """Writes the parameters of a run's last checkpoint as a pipeline; the run may be going on.

  Args:
    workdir: Work directory of the run.
    folder: The target folder; a LoRA is merged.
    weights: One of `WEIGHTS`.
    **options: Those of `interop.save_pipeline`: dtype, max_shard_size, variant.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: The directory holds no run or no checkpoint, the checkpoint cannot be read, or an
      option is not valid.
  """
  config = run_config(workdir)
  if config.pipeline and paths.parse(config.pipeline).resolve() == paths.parse(folder).resolve():
    raise InputError(
      f"{folder} is the pipeline that the run started from and compares with; give another folder"
    )
  step, pipeline, trained = _load(workdir, config, weights)
  save_pipeline(folder, config, pipeline, trained, **options)
  return step


def export_lora(
  workdir: paths.Path, file: paths.Path, *, weights: str = "ema", **options: Any
) -> int:
  """Writes the LoRA of a run's last checkpoint as a file.

  Args:
    workdir: Work directory of the run.
    file: The target, named *.safetensors.
    weights: One of `WEIGHTS`.
    **options: Those of `save_lora`: form, dtype.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: The directory holds no run or no checkpoint, the checkpoint cannot be read, or the
      run trains whole networks.
  """
  config = run_config(workdir)
  if not config.lora.rank:
    raise InputError(f"{workdir} trains whole networks, no LoRA: export its pipeline")
  step, pipeline, trained = _load(workdir, config, weights)
  save_lora(file, config, pipeline, trained, **options)
  return step


def check_base_weights(config: ConfigDict, pipeline: interop.Pipeline, base_weights: Any) -> None:
  """Raises if a pipeline is not the one that a run started from.

  Args:
    config: The run's config, for the message.
    pipeline: config.pipeline as it is now, on the host.
    base_weights: Checksum of the parameters at the start of the run, from run.json.

  Raises:
    InputError: The pipeline has other parameters now.
  """
  if tree_checksum(pipeline.params) != base_weights:
    raise InputError(
      f"config.pipeline {config.pipeline!r} has other parameters than when the run started "
      f"(base_weights in {RUN_FILE}); put it back and give the same command again: the steps that "
      "are done are saved"
    )


def _load(
  workdir: paths.Path, config: ConfigDict, weights: str
) -> tuple[int, interop.Pipeline, Params]:
  """Step and trained parameters of the last checkpoint, and the pipeline that the run started from.

  Shapes come from abstract evaluation: beside the checkpoint itself, no optimizer state is made.
  """
  if weights not in WEIGHTS:
    raise unknown("kind of weights", weights, WEIGHTS)
  moves = references.from_config(config.reference).moves
  if weights == "reference" and not moves:
    raise InputError(
      f"the reference of {workdir} is frozen (config.reference.kind): it is the pipeline that the "
      "run started from"
    )
  base_weights = read_run(workdir).get("base_weights")
  with files.reading(workdir / RUN_FILE, "record of a run", advice=DAMAGED):
    captions = [] if config.pipeline else setup.load_examples(config).captions
    pipeline = setup.load_pipeline(config, captions)
  check_base_weights(config, pipeline, base_weights)
  trained, *_ = setup.split_params(config, pipeline)
  make = functools.partial(
    initial_state,
    optimizer=make_optimizer(config.optimizer),
    ema=config.ema_decay > 0,
    reference=moves,
  )
  host = SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), jax.eval_shape(make, trained)
  )
  checkpoints = Checkpoints(workdir / "checkpoints", keep=None, read_only=True)
  with contextlib.closing(checkpoints):
    step = checkpoints.latest()
    if step is None:
      raise InputError(f"{workdir} holds no checkpoint yet")
    state = restore(checkpoints, step, like, position(config, base_weights, step))
  return step, pipeline, on_host(_export_params(state, weights))


def _export_params(state: State, weights: str = "ema") -> Params:
  if weights == "reference":
    return state.reference
  return state.params if weights == "last" or state.ema is None else state.ema
