"""Metrics of a run: JSON lines in parts, TensorBoard and W&B, consistent after a resume."""

import json
import logging
import math
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files, mirrors, optional, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.mirrors import flush_seconds
from dmpo_jax.errors import InputError
from dmpo_jax.training.monitor.tensorboard import Events

LOGGER = logging.getLogger(__name__)


# Kind of records -> beginning of the names of their parts.
KINDS = {"metrics": "train", "held_out": "held_out", "evaluation": "evaluation"}
FOLDER = "metrics"
# Records in a part; one that has so many is never written again.
PART_RECORDS = 1000


class MetricsWriter:
  """Writes records to parts of at most `PART_RECORDS`, and all of them to TensorBoard and W&B.

  The parts are `metrics/train-000000.jsonl` and those of `held_out` and `evaluation`. Each is
  written whole, again and again until it is full, because nothing can be appended to in a bucket:
  at `flush`, which must come before a checkpoint, and otherwise every `flush_seconds`.
  A resumed run removes the records after its checkpoint (TensorBoard hides them), because it
  computes them again. Lines that are no records, of a damaged file, are set aside in
  `metrics.damaged`, `held_out.damaged` or `evaluation.damaged`, with a warning. Runs of an older
  version have `metrics.jsonl`, `held_out.jsonl` and `evaluation.jsonl`, which count as first parts.

  Args:
    workdir: Work directory.
    step: Step at which the run starts or resumes; records of later steps are removed.
    wandb: W&B run that receives the same, or None.

  Raises:
    OSError: A file cannot be written. All methods raise it too.
  """

  def __init__(self, workdir: paths.Path, *, step: int, wandb: "Wandb | None" = None):
    self._parts = {name: _Part(workdir, name, step) for name in KINDS}
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

  def flush(self) -> None:
    """Writes the records of all steps so far, which a checkpoint of this step will not repeat."""
    for part in self._parts.values():
      part.flush()

  def close(self) -> None:
    """Flushes and closes all files."""
    self.flush()
    self._events.close()
    if self._wandb is not None:
      self._wandb.finish()

  def _append(self, name: str, record: Mapping[str, Any]) -> None:
    self._parts[name].append(record)

  def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._events.scalars(step, values)
    if self._wandb is not None:
      self._wandb.run.log({"step": step, **values})


class _Part:
  """The part of a kind of records that is being written.

  Args:
    workdir: Work directory.
    name: Key of `KINDS`.
    step: Step at which the run starts; records of later steps are removed.
  """

  def __init__(self, workdir: paths.Path, name: str, step: int):
    self._folder, self._prefix = workdir / FOLDER, KINDS[name]
    self._lines: list[str] = []
    self._number, self._dirty, self._written = 0, False, -math.inf
    self._seconds = flush_seconds(workdir)
    recorded, parts = 0, _part_files(workdir, name)
    for path in parts:
      records, damaged, is_cut = _read_lines(path, name)
      if damaged:
        _set_aside(path, workdir / f"{name}.damaged", damaged)
      recorded = max([recorded, *(record["step"] for record in records)])
      kept = [record for record in records if record["step"] <= step]
      if len(kept) < len(records) or damaged or is_cut:
        write_atomically(path, "".join(_line(record) for record in kept))
      if path.parent == self._folder:
        self._number = int(path.stem.rpartition("-")[2])
        self._lines = [_line(record) for record in kept]
    if recorded and not step and name == "metrics":
      LOGGER.warning(
        "%s records %d steps and no checkpoint of them is left: the run starts at step 0 again",
        parts[-1],
        recorded,
      )

  def append(self, record: Mapping[str, Any]) -> None:
    """Adds a record, which the next flush writes."""
    if len(self._lines) >= PART_RECORDS:
      self.flush()
      self._number, self._lines = self._number + 1, []
    self._lines.append(_line(record))
    self._dirty = True
    if time.monotonic() >= self._written + self._seconds:
      self.flush()

  def flush(self) -> None:
    """Writes the part."""
    if self._dirty:
      self._folder.mkdir(parents=True, exist_ok=True)
      path = self._folder / f"{self._prefix}-{self._number:06d}.jsonl"
      write_atomically(path, "".join(self._lines))
      self._dirty, self._written = False, time.monotonic()


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(record) + "\n"


class Wandb(NamedTuple):
  """The module wandb, an open run of it, and the folder of its files."""

  module: ModuleType
  run: Any
  folder: mirrors.Mirror

  def finish(self) -> None:
    """Ends the run."""
    self.run.finish()
    self.folder.close()


def check_wandb(project: str) -> None:
  """Raises if a W&B project is named and wandb is not installed.

  Args:
    project: W&B project; empty: none.

  Raises:
    InputError: wandb is not installed; the message says how to install it.
  """
  if project:
    optional.import_optional("wandb", extra="wandb")


def open_wandb(project: str, workdir: paths.Path, config: Mapping[str, Any]) -> Wandb | None:
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
  folder = mirrors.Mirror(workdir)
  try:
    run = module.init(
      project=project,
      name=workdir.name,
      id=run_id,
      resume="allow",
      dir=str(folder.local),
      config=dict(config),
    )
  except module.Error as error:
    raise InputError(
      f"W&B refuses project {project!r}: {error}. Log in (wandb login), set WANDB_MODE=offline, or "
      "leave config.wandb.project empty"
    ) from error
  run.define_metric("*", step_metric="step")
  return Wandb(module, run, folder)


def read(workdir: paths.Path, name: str = "metrics") -> list[dict]:
  """Reads the records of a run.

  Args:
    workdir: Work directory.
    name: "metrics", "held_out" or "evaluation".

  Returns:
    The records; empty without a file. Lines that are no records are passed over with a warning. An
    incomplete last line, of a killed run of an older version, is left out.
  """
  result = []
  for path in _part_files(paths.parse(workdir), name):
    records, damaged, _ = _read_lines(path, name)
    if damaged:
      LOGGER.warning("%s is damaged: %s are passed over", path, _list(damaged))
    result += records
  return result


def _part_files(workdir: paths.Path, name: str) -> list[paths.Path]:
  """The files of a kind of records, in order."""
  former = workdir / f"{name}.jsonl"
  parts = (workdir / FOLDER).glob(f"{KINDS[name]}-[0-9][0-9][0-9][0-9][0-9][0-9].jsonl")
  return [former] * former.exists() + sorted(parts)


def _read_lines(path: paths.Path, name: str) -> tuple[list[dict], dict[int, bytes], bool]:
  """The records in a file, number and bytes of the lines that are none, and whether it is cut."""
  is_record = _is_held_out if name == "held_out" else _is_metrics
  records, damaged = [], {}
  *complete, rest = path.read_bytes().split(b"\n")
  for number, line in enumerate(complete, 1):
    try:
      record = files.parse_json(line, path)
    except InputError:
      record = {}
    if is_record(record):
      records.append(record)
    else:
      damaged[number] = line
  return records, damaged, bool(rest)


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


def _set_aside(path: paths.Path, aside: paths.Path, damaged: Mapping[int, bytes]) -> None:
  """Adds damaged lines to a file beside the records."""
  before = aside.read_bytes() if aside.exists() else b""
  write_atomically(aside, before + b"".join(line + b"\n" for line in damaged.values()))
  LOGGER.warning("%s is damaged: %s are set aside in %s", path, _list(damaged), aside)


def _list(numbers: Iterable[int]) -> str:
  """ "lines 1, 2, 3" and at most two more, for a message."""
  numbers = list(numbers)
  shown = ", ".join(map(str, numbers[:5]))
  return f"line(s) {shown}" + f" and {len(numbers) - 5} more" * (len(numbers) > 5)
