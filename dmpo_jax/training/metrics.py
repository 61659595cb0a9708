"""The metrics files of a run: JSON lines and TensorBoard events, consistent after a resume."""

import json
import pathlib

from dmpo_jax.training.workdir import write_whole


class MetricsWriter:
  """Writes each row of metrics to `metrics.jsonl` and to TensorBoard event files in `tensorboard/`.

  A resumed run takes up after its checkpoint: rows past it are removed (and hidden in TensorBoard),
  for they are computed again.

  Args:
    workdir: The run's directory.
    step: The step the run takes up at; rows of later steps are dropped.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int):
    from tensorboardX import SummaryWriter  # slow to import: it looks for torch

    path = workdir / "metrics.jsonl"
    rows = [row for row in read(workdir) if row["step"] <= step]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    self._lines = path.open("a", buffering=1)
    self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one row."""
    self._lines.write(json.dumps({"step": step, **values}) + "\n")
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    self._lines.close()
    self._events.close()


def read(workdir: pathlib.Path) -> list[dict]:
  """The rows of a run's `metrics.jsonl`; a last line that a kill cut short is left out."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  lines = path.read_text().split("\n")
  complete = lines[:-1]  # what follows the last newline is empty, or a line cut short
  return [json.loads(line) for line in complete]
