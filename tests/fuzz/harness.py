"""Damaged files are read or refused in words: one harness for every reader."""

import dataclasses
import io
import os
import pathlib
import random
import re
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from dmpo_jax.commands.main import main
from dmpo_jax.errors import LINE_LIMIT, LINES_LIMIT, InputError
from tests.fuzz.damage import damaged

# Cases of each reader.
CASES = int(os.environ.get("DMPO_JAX_FUZZ_CASES", "12"))
SECONDS = 60
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True)
class Reader:
  """A reader and files that it reads.

  Attributes:
    root: Folder with valid files.
    files: Path in the folder -> kind of damage (`damage.damaged`), or a function of (content,
      generator) that returns the damaged content.
    read: Reads the files in a folder; `InputError` is a refusal.
  """

  root: pathlib.Path
  files: Mapping[str, str | Callable[[bytes, random.Random], bytes]]
  read: Callable[[pathlib.Path], object]


class HangError(BaseException):
  """A reader did not end in time."""


def check(name: str, reader: Reader, scratch: pathlib.Path, cases: int = CASES) -> Counter:
  """Reads damaged files and raises AssertionError if some are not handled.

  Args:
    name: Name of the reader; case n of it is always the same damage.
    reader: The reader.
    scratch: An empty folder.
    cases: Number of cases.

  Returns:
    Cases by outcome: "read", "refused".
  """
  outcomes: Counter[str] = Counter()
  reader.read(_copy(reader, scratch, "valid"))  # or every case would be refused
  failures: dict[str, list[str]] = {}
  for number in range(cases):
    generator = random.Random(f"{name}:{number}")
    folder = _copy(reader, scratch, "damaged")
    file = generator.choice(sorted(reader.files))
    kind, content = reader.files[file], (folder / file).read_bytes()
    content = kind(content, generator) if callable(kind) else damaged(content, kind, generator)
    (folder / file).write_bytes(content)
    outcome, failure = _outcome(reader, folder)
    outcomes[outcome] += 1
    if outcome == "failed":
      keep = scratch / f"{name}-{number}"
      shutil.copytree(folder, keep, symlinks=True)
      failures.setdefault(failure.split("\n")[0], []).append(f"{keep / file}\n{failure}")
  if failures:
    listed = "\n\n".join(f"{len(found)} times, as with {found[0]}" for found in failures.values())
    raise AssertionError(f"{outcomes['failed']} of {cases} cases of {name} failed:\n{listed}")
  return outcomes


def _outcome(reader: Reader, folder: pathlib.Path) -> tuple[str, str]:
  """The outcome of reading a damaged folder, and for a failure its place and message."""
  try:
    with within(SECONDS):
      reader.read(folder)
  except InputError as error:
    problem = message_problem(str(error))
    return ("failed", f"{problem}: {str(error)[:2000]!r}") if problem else ("refused", "")
  except (Exception, HangError) as error:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "dmpo_jax" in f.filename]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return "failed", f"{place}: {type(error).__name__}\n{error!s:.1500}"
  return "read", ""


def command(*arguments: object) -> None:
  """Runs dmpo-jax in this process; raises InputError with what it printed where it refuses."""
  out, err = io.StringIO(), io.StringIO()
  with redirect_stdout(out), redirect_stderr(err):
    status = main([str(argument) for argument in arguments])
  printed = CONTROL.findall(out.getvalue().replace("\r", ""))
  assert not printed, f"control characters on stdout: {printed}"
  if status == 2:
    raise InputError(err.getvalue().strip().rsplit("dmpo-jax: ", 1)[-1])
  assert status == 0, f"status {status}: {err.getvalue()[-2000:]}"


def message_problem(message: str) -> str | None:
  """The fault of an error message, or None."""
  lines = message.split("\n")
  if found := CONTROL.search(message):
    return f"the control character {found[0]!r}"
  if len(lines) > LINES_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
    return f"{len(lines)} lines of up to {max(map(len, lines))} characters"
  if "Traceback" in message or not message.strip():
    return "no message"
  return None


@contextmanager
def within(seconds: float):
  """Raises HangError in a block that takes longer."""

  def stop(*_):
    raise HangError(f"not done after {seconds} s")

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _copy(reader: Reader, scratch: pathlib.Path, name: str) -> pathlib.Path:
  folder = scratch / name
  shutil.rmtree(folder, ignore_errors=True)
  return pathlib.Path(shutil.copytree(reader.root, folder, symlinks=True))
