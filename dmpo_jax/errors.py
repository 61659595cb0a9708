"""Errors that end a command, and their exit statuses."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Mapping

# Exit statuses. 75 is EX_TEMPFAIL of sysexits.h: a temporary failure, try again. 76 is free there.
SYSTEM_ERROR, INPUT_ERROR, PREEMPTED, PROCESS_LOST, INTERRUPTED = 1, 2, 75, 76, 130


class InputError(ValueError):
  """Input that cannot be used: the message names the value, what was expected and what to do.

  Commands print the message alone and exit with status 2; any other exception is a defect of the
  program and keeps its traceback.
  """


class PreemptedError(Exception):
  """A run was preempted (SIGTERM) and has saved a checkpoint: the same command resumes it."""


def exit_status(error: BaseException) -> tuple[int, str] | None:
  """The exit status and the message of a command that ends by an error.

  Args:
    error: The error.

  Returns:
    (status, message): 1 the system refused something (a full disk, permissions), 2 bad input,
    75 preempted, 130 interrupted; None for a defect of the program.
  """
  if isinstance(error, InputError):
    return INPUT_ERROR, str(error)
  if isinstance(error, OSError):
    return SYSTEM_ERROR, str(error)
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
