"""Pipeline folders in diffusers' layout, written whole or not at all."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from dmpo_jax.common import atomic_folders, paths
from dmpo_jax.common import files as common_files
from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import files, state_dict, tokenizer, weight_names, write_weights
from dmpo_jax.interop.pipeline import INDEX, SCHEDULER, Pipeline, components_of, config_file


def save_pipeline(
  folder: str | os.PathLike,
  pipeline: Pipeline,
  *,
  dtype: Any = None,
  max_shard_size: int | str = "10GB",
  variant: str | None = None,
) -> None:
  """Writes a pipeline folder that diffusers loads; it appears whole or not at all.

  Everything is written to a hidden folder beside the target, which then takes its place: a pipeline
  at the target stays until the new one is complete, see `common.atomic_folders`. Only one of
  several processes may call this. Parameters are fetched, cast and written one at a time.

  Args:
    folder: The target: absent, empty, or a pipeline folder to replace.
    pipeline: The pipeline; parameters must fit the configs. Passthrough files are copied unchanged.
    dtype: Dtype of the parameters in the files: "float32", "float16", "bfloat16", or None for each
      leaf's own.
    max_shard_size: Bytes, or a string such as "5GB" (10^9 bytes each): larger networks are split
      into files of at most that size, with an index. A parameter is never split.
    variant: Variant in the weights' file names, as in diffusion_pytorch_model.fp16.safetensors; it
      must be named when they are loaded.

  Raises:
    InputError: An argument is not valid, the target is not a pipeline folder or lies below a file,
      a parameter has another name, shape or dtype than its config describes or overflows the dtype,
      or a passthrough file is gone.
    OSError: The system refused the write (a full disk, permissions).
  """
  dtype = state_dict.float_name(dtype)
  max_shard_size = write_weights.parse_size(max_shard_size)
  if variant is not None and not variant.replace("_", "").replace("-", "").isalnum():
    raise InputError(f"variant is {variant!r}; expected letters, digits, - and _")
  _check_names(pipeline)
  folder = paths.parse(folder).resolve()
  _check_target(folder)
  with atomic_folders.folder_atomically(folder, index=INDEX) as new:
    _write_small(new, pipeline, dtype)
    for name, params in pipeline.params.items():
      with files.located(f"{name} parameters"):
        write_weights.write_network(
          new / name,
          pipeline.configs[name],
          params,
          variant=variant,
          dtype=dtype,
          max_shard_size=max_shard_size,
        )
    _copy_passthrough(new, pipeline)


def _check_names(pipeline: Pipeline) -> None:
  """Raises InputError for a name that would be written outside of the target."""
  components_of(pipeline.model_index)
  for name in (*pipeline.params, *pipeline.tokenizers):
    common_files.check_name(name, "the component")
  for name in pipeline.passthrough:
    if name != pathlib.PurePosixPath(name).name or "\\" in name:
      raise InputError(f"the passthrough file {short(name)} is no name in the pipeline's folder")


def _check_target(folder: paths.Path) -> None:
  """Raises InputError unless a folder is absent, empty, or a pipeline folder to replace."""
  above = next((parent for parent in folder.parents if paths.exists(parent)), folder.parents[-1])
  if paths.exists(above) and not above.is_dir():
    raise InputError(f"cannot write to {folder.parent}: {above} is a file; choose another target")
  if not paths.exists(folder) or (folder.is_dir() and not any(folder.iterdir())):
    return
  if not (folder / INDEX).is_file():
    raise InputError(
      f"{folder} exists and is no pipeline folder (no {INDEX}); choose another target or remove it"
    )


def _write_small(folder: paths.Path, pipeline: Pipeline, dtype: str | None) -> None:
  files.write_json(folder / INDEX, pipeline.model_index)
  for name in (*pipeline.params, SCHEDULER):
    if name not in pipeline.configs:
      raise InputError(f"the pipeline has no config for {name!r}")
    (folder / name).mkdir()
    files.write_json(folder / name / config_file(name), _with_dtype(dtype, pipeline.configs[name]))
  for name, value in pipeline.tokenizers.items():
    tokenizer.write_tokenizer(folder / name, value)


def _with_dtype(dtype: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with the new dtype where it states one: transformers loads weights in it."""
  return {
    field: dtype if dtype and field in ("dtype", "torch_dtype") else value
    for field, value in config.items()
  }


def _copy_passthrough(folder: paths.Path, pipeline: Pipeline) -> None:
  for name, source in pipeline.passthrough.items():
    if not source.exists():
      raise InputError(
        f"{name} is to be copied from {source}, which is gone or was never downloaded; load the "
        "whole pipeline again"
      )
    if source.is_file():
      shutil.copyfile(common_files.inside(source.parent, source.name, "file"), folder / name)
      continue
    names = files.names(source)
    if name in pipeline.configs and not any(
      weight_names.variants(names, stem) for stem in weight_names.STEMS
    ):
      raise InputError(
        f"{name} was not loaded, and {source}, from which it is to be copied, holds no weights; "
        "load the whole pipeline"
      )
    for relative in files.contents(source.parent, source.name):
      target = folder / name / relative
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(source / relative, target)
    (folder / name).mkdir(exist_ok=True)
