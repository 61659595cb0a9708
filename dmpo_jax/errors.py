"""What ends a run before its work is done, and the exit status of each."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Mapping

# sysexits.h: a temporary failure, try again. The one after it is free there.
PREEMPTED, PROCESS_LOST = 75, 76


class InputError(ValueError):
  """Input that cannot be used: the message names the value, what was expected and what to do.

  Commands print the message alone and exit with status 2; any other exception is a defect of the
  program and keeps its traceback.
  """


class PreemptedError(Exception):
  """A run was preempted (SIGTERM) and has saved a checkpoint: the same command resumes it."""


def outcome(error: BaseException) -> tuple[int, str] | None:
  """The exit status of a command that an error ended, and what is printed.

  Args:
    error: What was raised.

  Returns:
    (status, message): 1 the system refused something (a full disk, permissions), 2 bad input,
    75 pre-empted, 130 interrupted; None for a defect of the program.
  """
  if isinstance(error, InputError):
    return 2, str(error)
  if isinstance(error, OSError):
    return 1, str(error)
  if isinstance(error, PreemptedError):
    return PREEMPTED, str(error)
  if isinstance(error, KeyboardInterrupt):
    return 130, "interrupted; the same command goes on where it was"
  return None


def flush() -> None:
  """Writes what has been printed, where it can; for a process that ends by os._exit."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()


def unknown(
  kind: str, name: object, options: Iterable[str], *, renamed: Mapping[str, str] | None = None
) -> InputError:
  """The error for a name that is not among `options`, with the nearest of them as a suggestion.

  Args:
    kind: What the name stands for, in words ("objective", "config key").
    name: The name that was given.
    options: The names that exist.
    renamed: Former name -> the name in `options` that replaced it.

  Returns:
    An `InputError` to raise.
  """
  if renamed and name in renamed:
    return InputError(f"{kind} {name!r} is called {renamed[name]!r} now; rename it")
  known = sorted(options)
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})")
