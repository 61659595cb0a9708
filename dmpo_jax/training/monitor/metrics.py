"""What a run writes about itself: JSON lines, TensorBoard, and W&B; consistent after a resume."""

import json
import pathlib
import secrets
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import optional
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError
from dmpo_jax.training.monitor.tensorboard import Events


class MetricsWriter:
  """Writes rows to `metrics.jsonl` and `held_out.jsonl`, and all to TensorBoard and W&B.

  A resumed run takes up after its checkpoint: rows past it are removed (and hidden in TensorBoard),
  for they are computed again.

  Args:
    workdir: The run's directory.
    step: The step the run takes up at; rows of later steps are dropped.
    wandb: A run of W&B that gets the same, or None.

  Raises:
    OSError: A file cannot be written; so do all methods.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int, wandb: "Wandb | None" = None):
    self._lines = {}
    for name in ("metrics", "held_out"):
      path = workdir / f"{name}.jsonl"
      if name == "metrics" or path.exists():
        rows = [row for row in read(workdir, name) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    self._workdir = workdir
    self._events = Events(workdir / "tensorboard", step=step + 1)
    self._wandb = wandb

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a row of the train step's metrics."""
    self._append("metrics", {"step": step, **values})
    self._show(step, values)

  def write_held_out(self, step: int, row: Mapping[str, Any]) -> None:
    """Appends a row of the held-out evaluation: numbers, and "bins", a list of such rows."""
    self._append("held_out", {"step": step, **row})
    shown = {f"held_out/{name}": value for name, value in row.items() if name != "bins"}
    for part in row["bins"]:
      place = f"held_out_t{part['from']}-{part['to']}"
      shown |= {f"{place}/{k}": v for k, v in part.items() if k not in ("from", "to")}
    self._show(step, shown)

  def write_image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Shows a picture, uint8 `[H, W, C]`."""
    self._events.image(step, name, picture)
    if self._wandb is not None:
      self._wandb.run.log({"step": step, name: self._wandb.module.Image(picture)})

  def close(self) -> None:
    """Flushes and closes all files."""
    for lines in self._lines.values():
      lines.close()
    self._events.close()
    if self._wandb is not None:
      self._wandb.run.finish()

  def _append(self, name: str, row: Mapping[str, Any]) -> None:
    if name not in self._lines:
      self._lines[name] = (self._workdir / f"{name}.jsonl").open("a", buffering=1)
    self._lines[name].write(json.dumps(row) + "\n")

  def _show(self, step: int, values: Mapping[str, float]) -> None:
    self._events.scalars(step, values)
    if self._wandb is not None:
      self._wandb.run.log({"step": step, **values})


class Wandb(NamedTuple):
  """The package wandb, and a run that it opened."""

  module: ModuleType
  run: Any


def check_wandb(project: str) -> None:
  """Refuses a project of W&B where the package is not installed.

  Raises:
    InputError: It is not; the message says how to install it.
  """
  if project:
    optional.require("wandb", extra="wandb")


def open_wandb(project: str, workdir: pathlib.Path, config: Mapping[str, Any]) -> Wandb | None:
  """Opens the W&B run of a work directory, the same one after a resume.

  Its id lies in `wandb_id`. Rows carry their step themselves, so that those which are computed
  again after a resume fall on the ones from before.

  Args:
    project: Of W&B; empty: none is opened.
    workdir: The run's directory, whose name the run gets.
    config: What is shown as its config.

  Returns:
    `Wandb`, or None.

  Raises:
    InputError: The package is not installed, or W&B refuses the run.
  """
  if not project:
    return None
  module = optional.require("wandb", extra="wandb")
  path = workdir / "wandb_id"
  if not path.exists():
    write_atomically(path, secrets.token_hex(8) + "\n")
  try:
    run = module.init(
      project=project,
      name=workdir.name,
      id=path.read_text().strip(),
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
  """The rows of a run's `metrics.jsonl`, or of another such file.

  A last line that a kill cut short is left out.

  Args:
    workdir: The run's directory.
    name: "metrics" or "held_out".

  Returns:
    The rows, none where there is no file.
  """
  path = workdir / f"{name}.jsonl"
  if not path.exists():
    return []
  lines = path.read_text().split("\n")
  complete = lines[:-1]  # what follows the last newline is empty, or a line cut short
  return [json.loads(line) for line in complete]
