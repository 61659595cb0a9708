"""The results of a finished run: pipeline, LoRA, and summary.json, which lists their files."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from dmpo_jax.common import files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError, short

LOGGER = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
PIPELINE = "pipeline"
# The LoRA of a run in its work directory: the file that diffusers looks for, and the form that
# ComfyUI, AUTOMATIC1111 and kohya's tools read.
LORA_FILE = pathlib.Path("lora") / "pytorch_lora_weights.safetensors"
KOHYA_FILE = pathlib.Path("lora") / "kohya.safetensors"
FOLDERS = (PIPELINE, LORA_FILE.parts[0])


class Result(NamedTuple):
  """Summary of a run.

  Attributes:
    pipeline: Folder in diffusers' format with the trained parameters, the EMA where there is one.
    steps: Optimizer steps of the run.
    resumed_at: Step at which the last start resumed; 0 for the first start.
    seconds: Wall-clock seconds of the last start.
    compile_seconds: Those of them until the first step began: setup, compilation, and the first
      held-out evaluation and samples.
    examples_per_second: Examples (pairs or images) per second after that.
    captions_truncated: Captions that are longer than the text encoder's context and were cut.
  """

  pipeline: paths.Path
  steps: int
  resumed_at: int
  seconds: float
  compile_seconds: float
  examples_per_second: float
  captions_truncated: int


def write_summary(workdir: paths.Path, result: Result) -> None:
  """Writes summary.json: the result, and size and SHA-256 of each file of the run's results.

  Args:
    workdir: Work directory; the results are in it.
    result: The summary.

  Raises:
    OSError: A file cannot be read or written.
  """
  content = {**result._asdict(), PIPELINE: str(result.pipeline), "files": {}}
  for folder in FOLDERS:
    for path in sorted((workdir / folder).rglob("*")):
      if path.is_file():
        name = path.relative_to(workdir).as_posix()
        content["files"][name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
  write_atomically(workdir / SUMMARY_FILE, json.dumps(content, indent=1) + "\n")


def read_summary(workdir: paths.Path, steps: int) -> dict[str, Any] | None:
  """The result of a run that has finished, if all files of its results are as it wrote them.

  Files of others beside them do not matter. A warning names what is missing or damaged: the caller
  makes the results again.

  Args:
    workdir: Work directory.
    steps: Steps of the run.

  Returns:
    Fields of `Result`, in JSON, without `pipeline`; None if the run has not finished so many steps,
    or its results are not whole.

  Raises:
    OSError: The system refused to read a file.
  """
  path = workdir / SUMMARY_FILE
  if not path.exists():
    return None
  try:
    summary = files.read_json(path)
    fields = _fields(path, summary)
    if fields["steps"] != steps:
      return None
    _check_files(workdir, path, summary.get("files"))
  except InputError as error:
    LOGGER.warning("%s. The results of the run are written again", error)
    return None
  return fields


def _fields(path: paths.Path, summary: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `Result` in a summary, without the pipeline."""
  types = {name: kind for name, kind in Result.__annotations__.items() if name != PIPELINE}
  for name, kind in types.items():
    value = summary.get(name)
    if not isinstance(value, kind | int) or isinstance(value, bool):
      raise InputError(f"{path} is damaged: {name} is {value!r}, expected a number")
  return {name: summary[name] for name in types}


def _check_files(workdir: paths.Path, path: paths.Path, listed: Any) -> None:
  """Raises InputError for the first file of the results that is not as the run wrote it."""
  if not isinstance(listed, dict) or not listed:
    raise InputError(f"{path} lists no files of the results")
  for name, entry in listed.items():
    parts = pathlib.PurePosixPath(name).parts
    if parts[:1] not in [(folder,) for folder in FOLDERS] or ".." in parts or "\0" in name:
      raise InputError(f"{path} lists {short(name)}, which is no file of the results")
    file = workdir / name
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
      raise InputError(f"{path} is damaged: it has no size and no SHA-256 of {name}")
    if not files.is_file(file):
      raise InputError(f"{file} is missing, which the finished run has written")
    if (size := file.stat().st_size) != entry["bytes"]:
      raise InputError(f"{file} has {size} bytes, the finished run wrote {entry['bytes']}")
  for name, entry in listed.items():  # after the sizes, which cost nothing
    if _sha256(workdir / name) != entry["sha256"]:
      raise InputError(f"{workdir / name} has changed since the run finished")


def _sha256(path: paths.Path) -> str:
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
