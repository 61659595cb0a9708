"""The error that bad input raises, and the words for a misspelt name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Input that cannot be used: the message names the value, what was expected and what to do.

  Commands print the message alone and exit with status 2; any other exception is a defect of the
  program and keeps its traceback.
  """


def unknown(kind: str, name: object, options: Iterable[str]) -> InputError:
  """The error for a name that is not among `options`, with the nearest of them as a suggestion.

  Args:
    kind: What the name stands for, in words ("objective", "config key").
    name: The name that was given.
    options: The names that exist.

  Returns:
    An `InputError` to raise.
  """
  known = sorted(options)
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})")
