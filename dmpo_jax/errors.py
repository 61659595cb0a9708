"""Errors that end a command, and their exit statuses."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Mapping

# Exit statuses. 75 is EX_TEMPFAIL of sysexits.h: a temporary failure, try again. 76 is free there.
SYSTEM_ERROR, INPUT_ERROR, STOPPED, PREEMPTED, PROCESS_LOST, INTERRUPTED = 1, 2, 4, 75, 76, 130


# Longest line of a message, and most lines of one, in characters and lines.
LINE_LIMIT, LINES_LIMIT = 600, 40


class InputError(ValueError):
  """Input that cannot be used: the message names the value, what was expected and what to do.

  Commands print the message alone and exit with status 2; any other exception is a defect of the
  program and keeps its traceback. The message is made `printable`.
  """

  def __init__(self, message: object = ""):
    super().__init__(printable(str(message)))


def printable(text: str) -> str:
  """A message that is safe to print and short enough to read.

  Control and formatting characters of a stranger's file are escaped, except line feeds. A line of
  more than `LINE_LIMIT` characters loses its middle, a message of more than `LINES_LIMIT` lines its
  end.
  """
  lines = escaped(text).split("\n")
  if len(lines) > LINES_LIMIT:
    lines[LINES_LIMIT - 1 :] = [f"... and {len(lines) - LINES_LIMIT + 1} more lines"]
  return "\n".join(cut(line, LINE_LIMIT) for line in lines)


def escaped(text: str) -> str:
  """A text in which control and formatting characters are escaped, except line feeds."""
  return "".join(c if c.isprintable() or c in "\n\u00a0\u3000" else _escape(c) for c in text)


def short(value: object, limit: int = 80) -> str:
  """The repr of a value for a message, of at most `limit` characters."""
  if isinstance(value, str | bytes | bytearray):  # the repr of a long text costs its length
    value = value if len(value) <= 4 * limit else value[: 2 * limit] + value[-2 * limit :]
  try:
    return cut(repr(value), limit)
  except ValueError:  # Python prints no integer of more than 4,300 digits
    return f"{type(value).__name__} of too many digits"


def cut(text: str, limit: int) -> str:
  """A text without its middle, where it is longer than `limit` characters."""
  if len(text) <= limit:
    return text
  head = (limit - 5) * 2 // 3
  return f"{text[:head]} ... {text[len(text) - (limit - 5 - head) :]}"


def _escape(character: str) -> str:
  return character.encode("unicode_escape").decode("ascii")


class PreemptedError(Exception):
  """A run was preempted (SIGTERM) and has saved a checkpoint: the same command resumes it."""


class StoppedError(Exception):
  """An alarm has ended a run, whose results are those of its last checkpoint before the alarm."""


def exit_status(error: BaseException) -> tuple[int, str] | None:
  """The exit status and the message of a command that ends by an error.

  Args:
    error: The error.

  Returns:
    (status, message): 1 the system refused something (a full disk, permissions), 2 bad input,
    4 ended by an alarm, 75 preempted, 130 interrupted; None for a defect of the program.
  """
  if isinstance(error, InputError):
    return INPUT_ERROR, str(error)
  if isinstance(error, OSError):
    return SYSTEM_ERROR, printable(str(error))
  if isinstance(error, StoppedError):
    return STOPPED, printable(str(error))
  if isinstance(error, PreemptedError):
    return PREEMPTED, str(error)
  if isinstance(error, KeyboardInterrupt):
    return INTERRUPTED, "interrupted; the same command resumes"
  return None


def flush() -> None:
  """Flushes stdout and stderr, for a process that ends by os._exit; a full disk is ignored."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()


def unknown(
  kind: str, name: object, options: Iterable[str], *, renamed: Mapping[str, str] | None = None
) -> InputError:
  """The error for an unknown name, with the nearest known one as a suggestion.

  Args:
    kind: Kind of thing that is named, in words ("loss", "config key").
    name: The unknown name.
    options: The names that exist.
    renamed: Former name -> the name in `options` that replaced it.

  Returns:
    An `InputError` to raise.
  """
  if renamed and name in renamed:
    return InputError(f"{kind} {name!r} is called {renamed[name]!r} now; rename it")
  options = sorted(options)
  near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(options) or 'none'})")
