"""Goodput of a run: the parts of its wall time, over all of its starts."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dmpo_jax.common import files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError, short

LOGGER = logging.getLogger(__name__)

FILE = "goodput.json"
FORMAT = 1
# Parts that the time of a start after its last checkpoint is taken from when it is lost.
REPEATED = ("steps", "data", "save", "evaluation")
PARTS = ("steps", "init", "compile", "restore", "data", "save", "evaluation", "export")
# Parts of a run that no start is in.
BETWEEN = ("lost", "down")
WORDS = {
  "steps": "steps",
  "init": "initialisation",
  "compile": "compilation",
  "restore": "restoring",
  "data": "waiting for data",
  "save": "saving",
  "evaluation": "evaluation",
  "export": "export",
  "lost": "lost work",
  "down": "between starts",
}
PERIOD = 30.0  # seconds between two records of a start: what SIGKILL makes unknown at most
MOST_SAVED = 200  # checkpoints that a run may go back


class Goodput:
  """Counts the wall time of a run by part, in the main thread, and keeps it in goodput.json.

      wall time = steps + init + compile + restore + data + save + evaluation + export + lost + down
      goodput   = steps / wall time

  At each moment a start is in one part, `init` at first. A start that resumes at step s moves what
  earlier starts counted as `REPEATED` after the checkpoint of step s to `lost`, and the time from
  the last record of the start before it to its own beginning to `down`.

  A thread writes the file, every `PERIOD` seconds and after each checkpoint, so that the main
  thread never waits for a disk. A failed write is a warning: it ends no run.

  Args:
    clock: Seconds of a clock that never goes back.
    wall_clock: Seconds since 1970; a clock that all hosts of a run share, up to its error.
    period: Seconds between two records; None: only `begin` and `close` write.
  """

  def __init__(
    self,
    *,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    period: float | None = PERIOD,
  ):
    self._clock, self._wall_clock, self._period = clock, wall_clock, period
    self._lock, self._due = threading.Lock(), threading.Event()
    self._path: paths.Path | None = None
    self._thread: threading.Thread | None = None
    self._closing = self._warned = False
    self._seconds = dict.fromkeys((*PARTS, *BETWEEN), 0.0)
    self._part, self._since = "init", clock()
    self._began = self._first_start = wall_clock()
    self._step, self._starts, self._lost_steps = 0, 1, 0
    self._saved: dict[int, dict[str, float]] = {}

  def begin(self, workdir: paths.Path, step: int) -> None:
    """Adds the earlier starts of the run, and records this one from now on; once in a start.

    Args:
      workdir: Work directory of the run.
      step: Step at which this start resumes; 0 for a new run.
    """
    if self._path is not None:
      return
    self._path = workdir / FILE
    past = read_or_warn(workdir)
    with self._lock:
      if past is None:
        self._saved = {step: dict.fromkeys(REPEATED, 0.0)}
      else:
        self._add(past, step)
      self._step = step
    self._write()
    if self._period is not None:
      self._thread = threading.Thread(target=self._write_when_due, daemon=True)
      self._thread.start()

  def _add(self, past: Mapping[str, Any], step: int) -> None:
    """Adds what earlier starts recorded, their lost work moved."""
    seconds = dict(past["seconds"])
    saved = {int(s): dict(parts) for s, parts in past["saved"].items() if int(s) <= step}
    kept = saved[max(saved)] if saved else dict.fromkeys(REPEATED, 0.0)
    for part in REPEATED:
      seconds["lost"] += seconds[part] - kept[part]
      seconds[part] = kept[part]
    seconds["down"] += max(0.0, self._began - past["updated"])
    for part, value in seconds.items():
      self._seconds[part] += value
    self._saved = saved or {step: kept}
    self._first_start, self._starts = past["first_start"], past["starts"] + 1
    self._lost_steps = past["lost_steps"] + max(0, past["step"] - step)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts the time of its body as a part; one inside another counts for the inner one alone.

    Args:
      name: One of `PARTS`.
    """
    outer = self._part
    self._enter(name)
    try:
      yield
    finally:
      self._enter(outer)

  def _enter(self, part: str) -> None:
    with self._lock:
      self._settle()
      self._part = part

  def _settle(self) -> None:
    now = self._clock()
    self._seconds[self._part] += now - self._since
    self._since = now

  def move(self, seconds: float, part: str) -> None:
    """Counts the last seconds, of the part that the start is in now, as another part."""
    with self._lock:
      self._settle()
      self._seconds[self._part] -= seconds
      self._seconds[part] += seconds

  def done(self, step: int) -> None:
    """Notes the number of steps done."""
    self._step = step

  def saved(self, step: int) -> None:
    """Notes that the time so far made the checkpoint of a step: it is lost only with it."""
    with self._lock:
      self._settle()
      self._saved[step] = {part: self._seconds[part] for part in REPEATED}
      for old in sorted(self._saved)[:-MOST_SAVED]:
        del self._saved[old]
    self._due.set()

  def record(self) -> dict[str, Any]:
    """The content of goodput.json at this moment."""
    with self._lock:
      self._settle()
      wall = sum(self._seconds.values())
      return {
        "format": FORMAT,
        "goodput": self._seconds["steps"] / wall if wall else 0.0,
        "wall_seconds": wall,
        "seconds": dict(self._seconds),
        "starts": self._starts,
        "step": self._step,
        "lost_steps": self._lost_steps,
        "first_start": self._first_start,
        "updated": self._wall_clock(),
        "saved": {str(step): dict(parts) for step, parts in sorted(self._saved.items())},
      }

  def metrics(self) -> dict[str, float]:
    """Columns of metrics: goodput, and the fraction of the wall time in each part."""
    record = self.record()
    wall = record["wall_seconds"] or 1.0
    fractions = {f"wall_time/{part}": value / wall for part, value in record["seconds"].items()}
    return {"goodput": record["goodput"], **fractions}

  def close(self) -> None:
    """Records the end of this start."""
    if self._path is None:
      return
    self._closing = True
    self._due.set()
    if self._thread is not None:
      self._thread.join()
    self._write()
    LOGGER.info("goodput %s", text(self.record()))

  def _write_when_due(self) -> None:
    while not self._closing:
      self._due.wait(self._period)
      self._due.clear()
      if not self._closing:
        self._write()

  def _write(self) -> None:
    content = json.dumps(self.record(), indent=1) + "\n"
    try:
      write_atomically(self._path, content)
    except OSError as error:
      if not self._warned:
        LOGGER.warning("%s; the run goes on without this record", error)
      self._warned = True


def read(workdir: paths.Path) -> dict[str, Any] | None:
  """The content of goodput.json.

  Args:
    workdir: Work directory of a run.

  Returns:
    See `Goodput.record`; None without a file.

  Raises:
    InputError: The file is damaged, or of another version.
  """
  path = workdir / FILE
  if not files.is_file(path):
    return None
  advice = "remove it: the run counts from its next start"
  record = files.read_json(path, advice=advice)
  if record.get("format") != FORMAT:
    raise InputError(f"{path} has format {short(record.get('format'))}, not {FORMAT}; {advice}")
  with files.reading(path, "record of a run's time", advice=advice):
    numbers = [
      *(record[key] for key in ("goodput", "wall_seconds", "first_start", "updated")),
      *(record["seconds"][part] for part in (*PARTS, *BETWEEN)),
      *(parts[part] for parts in record["saved"].values() for part in REPEATED),
    ]
    counts = [
      *(record[key] for key in ("starts", "step", "lost_steps")),
      *map(int, record["saved"]),
    ]
    for value in (*numbers, *counts):
      if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{short(value)} is no count of seconds or steps")
    if record["seconds"].keys() != {*PARTS, *BETWEEN}:
      raise ValueError(f"it has the parts {', '.join(record['seconds'])}")
  return record


def read_or_warn(workdir: paths.Path) -> dict[str, Any] | None:
  """As `read`; a file that cannot be used is a warning, and None."""
  try:
    return read(workdir)
  except InputError as error:
    LOGGER.warning("%s", error)
    return None


def text(record: Mapping[str, Any]) -> str:
  """A record in one line: wall time, starts, and the share of each part.

  Args:
    record: See `Goodput.record`.
  """
  wall, starts = record["wall_seconds"], record["starts"]
  shares = {part: 100 * value / wall if wall else 0.0 for part, value in record["seconds"].items()}
  parts = [f"{WORDS[part]} {share:.1f}%" for part, share in shares.items() if share >= 0.05]
  lost = f" ({record['lost_steps']} steps)" if record["lost_steps"] else ""
  parts = [part + lost if part.startswith(WORDS["lost"]) else part for part in parts]
  return (
    f"{100 * record['goodput']:.1f}% of {duration(wall)} in {starts} start{'s' * (starts != 1)}: "
    + ", ".join(parts)
  )


def duration(seconds: float) -> str:
  """Seconds in words: "12.3 s", "4.5 min", "6.7 h"."""
  for unit, size in (("h", 3600), ("min", 60)):
    if seconds >= size:
      return f"{seconds / size:.1f} {unit}"
  return f"{seconds:.1f} s"
