"""Metrics of a run: JSON lines, TensorBoard and W&B, consistent after a resume."""

import json
import logging
import pathlib
import re
import secrets
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files, optional
from dmpo_jax.common.atomic_files import write_atomically, writing
from dmpo_jax.errors import InputError
from dmpo_jax.training.monitor.tensorboard import Events

LOGGER = logging.getLogger(__name__)


class MetricsWriter:
  """Writes records to three files, and all of them to TensorBoard and W&B.

  The files are `metrics.jsonl`, `held_out.jsonl` and `evaluation.jsonl`.
  A resumed run removes the records after its checkpoint (TensorBoard hides them), because it
  computes them again. Lines that are no records, of a damaged file, are set aside in
  `metrics.damaged`, `held_out.damaged` or `evaluation.damaged`, with a warning.

  Args:
    workdir: Work directory.
    step: Step at which the run starts or resumes; records of later steps are removed.
    wandb: W&B run that receives the same, or None.

  Raises:
    OSError: A file cannot be written. All methods raise it too.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int, wandb: "Wandb | None" = None):
    self._lines = {}
    for name in ("metrics", "held_out", "evaluation"):
      path = workdir / f"{name}.jsonl"
      if name == "metrics" or path.exists():
        records, damaged = _read_lines(path)
        if damaged:
          _set_aside(path, damaged)
        recorded = max((record["step"] for record in records), default=0)
        if recorded and not step and name == "metrics":
          LOGGER.warning(
            "%s records %d steps and no checkpoint of them is left: the run starts at step 0 again",
            path,
            recorded,
          )
        kept = (record for record in records if record["step"] <= step)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
    self._workdir = workdir
    self._events = Events(workdir / "tensorboard", step=step + 1)
    self._wandb = wandb

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends the metrics of a train step."""
    self._append("metrics", {"step": step, **values})
    self._write_scalars(step, values)

  def write_held_out(self, step: int, record: Mapping[str, Any]) -> None:
    """Appends a record of the held-out evaluation, see `held_out_errors.summarise`."""
    self._append("held_out", {"step": step, **record})
    scalars = {f"held_out/{name}": value for name, value in record.items() if name != "bins"}
    for metrics in record["bins"]:
      tag = f"held_out_t{metrics['from']}-{metrics['to']}"
      scalars |= {f"{tag}/{k}": v for k, v in metrics.items() if k not in ("from", "to")}
    self._write_scalars(step, scalars)

  def write_evaluation(self, step: int, record: Mapping[str, float]) -> None:
    """Appends a record of `SampleEvaluation`; the ends of intervals stay in the file."""
    self._append("evaluation", {"step": step, **record})
    values = {k: v for k, v in record.items() if not k.endswith(("_low", "_high"))}
    self._write_scalars(step, {f"evaluation/{name}": value for name, value in values.items()})

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes an image, uint8 `[H, W, C]`, to TensorBoard and W&B."""
    self._events.image(step, name, image)
    if self._wandb is not None:
      self._wandb.run.log({"step": step, name: self._wandb.module.Image(image)})

  def close(self) -> None:
    """Flushes and closes all files."""
    for lines in self._lines.values():
      lines.close()
    self._events.close()
    if self._wandb is not None:
      self._wandb.run.finish()

  def _append(self, name: str, record: Mapping[str, Any]) -> None:
    path = self._workdir / f"{name}.jsonl"
    with writing(path):
      if name not in self._lines:
        self._lines[name] = path.open("a", buffering=1, encoding="utf-8")
      self._lines[name].write(json.dumps(record) + "\n")

  def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._events.scalars(step, values)
    if self._wandb is not None:
      self._wandb.run.log({"step": step, **values})


class Wandb(NamedTuple):
  """The module wandb and an open run of it."""

  module: ModuleType
  run: Any


def check_wandb(project: str) -> None:
  """Raises if a W&B project is named and wandb is not installed.

  Args:
    project: W&B project; empty: none.

  Raises:
    InputError: wandb is not installed; the message says how to install it.
  """
  if project:
    optional.import_optional("wandb", extra="wandb")


def open_wandb(project: str, workdir: pathlib.Path, config: Mapping[str, Any]) -> Wandb | None:
  """Opens the W&B run of a work directory, the same one after a resume.

  The file `wandb_id` keeps its id. Each record has its step as a metric, because W&B's own step
  must rise and a resumed run writes some steps again.

  Args:
    project: W&B project; empty: none.
    workdir: Work directory; its name becomes the name of the W&B run.
    config: Config that W&B shows.

  Returns:
    `Wandb`, or None without a project.

  Raises:
    InputError: wandb is not installed, or W&B refuses the run.
  """
  if not project:
    return None
  module = optional.import_optional("wandb", extra="wandb")
  path = workdir / "wandb_id"
  if not path.exists():
    write_atomically(path, secrets.token_hex(8) + "\n")
  run_id = files.read_text(path, max_bytes=1000).strip()
  if not re.fullmatch("[A-Za-z0-9_-]{1,64}", run_id):
    raise InputError(f"{path} holds no id of a W&B run; remove it for a new W&B run")
  try:
    run = module.init(
      project=project,
      name=workdir.name,
      id=run_id,
      resume="allow",
      dir=str(workdir),
      config=dict(config),
    )
  except module.Error as error:
    raise InputError(
      f"W&B refuses project {project!r}: {error}. Log in (wandb login), set WANDB_MODE=offline, or "
      "leave config.wandb.project empty"
    ) from error
  run.define_metric("*", step_metric="step")
  return Wandb(module, run)


def read(workdir: pathlib.Path, name: str = "metrics") -> list[dict]:
  """Reads the records of `metrics.jsonl`, `held_out.jsonl` or `evaluation.jsonl`.

  Args:
    workdir: Work directory.
    name: "metrics", "held_out" or "evaluation".

  Returns:
    The records; empty without a file. Lines that are no records are passed over with a warning. An
    incomplete last line, of a killed run, is left out.
  """
  path = workdir / f"{name}.jsonl"
  records, damaged = _read_lines(path)
  if damaged:
    LOGGER.warning("%s is damaged: %s are passed over", path, _list(damaged))
  return records


def _read_lines(path: pathlib.Path) -> tuple[list[dict], dict[int, bytes]]:
  """The records in a file, and number and bytes of the lines that are none."""
  if not path.exists():
    return [], {}
  is_record = _is_held_out if path.name == "held_out.jsonl" else _is_metrics
  records, damaged = [], {}
  complete = path.read_bytes().split(b"\n")[:-1]  # the rest is empty or an incomplete line
  for number, line in enumerate(complete, 1):
    try:
      record = files.parse_json(line, path)
    except InputError:
      record = {}
    if is_record(record):
      records.append(record)
    else:
      damaged[number] = line
  return records, damaged


def _is_metrics(record: Mapping[str, Any]) -> bool:
  step, values = record.get("step"), record.values()
  is_step = isinstance(step, int) and not isinstance(step, bool) and step >= 0
  return is_step and all(isinstance(value, int | float) for value in values)


def _is_held_out(record: Mapping[str, Any]) -> bool:
  bins = record.get("bins")
  return (
    _is_metrics({key: value for key, value in record.items() if key != "bins"})
    and isinstance(bins, list)
    and all(
      isinstance(metrics, dict)
      and {"from", "to"} <= metrics.keys()
      and _is_metrics({"step": 0, **metrics})
      for metrics in bins
    )
  )


def _set_aside(path: pathlib.Path, damaged: Mapping[int, bytes]) -> None:
  """Appends damaged lines to a file beside the records."""
  aside = path.with_suffix(".damaged")
  with writing(aside), aside.open("ab") as stream:
    stream.write(b"".join(line + b"\n" for line in damaged.values()))
  LOGGER.warning("%s is damaged: %s are set aside in %s", path, _list(damaged), aside)


def _list(numbers: Iterable[int]) -> str:
  """ "lines 1, 2, 3" and at most two more, for a message."""
  numbers = list(numbers)
  shown = ", ".join(map(str, numbers[:5]))
  return f"line(s) {shown}" + f" and {len(numbers) - 5} more" * (len(numbers) > 5)
