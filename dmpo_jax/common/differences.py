"""Differences between two nested dicts, such as options of a run and those of an earlier one."""

import reprlib
from collections.abc import Mapping
from typing import Any

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 200
_shorten.maxlist = _shorten.maxtuple = _shorten.maxdict = 20


class _Absent:
  def __repr__(self) -> str:
    return "absent"


ABSENT = _Absent()


def differences(first: Any, second: Any, *, prefix: str = "") -> dict[str, tuple[Any, Any]]:
  """Values in which two nested dicts differ.

  Tuples equal lists of the same elements, so that a dict equals the one read back from its JSON.

  Args:
    first: A nested dict.
    second: Another one.
    prefix: Dotted key of both in a larger dict.

  Returns:
    Dotted key -> (value in `first`, value in `second`), `ABSENT` where the key is missing, sorted
    by key.
  """
  both = first, second
  if not all(isinstance(x, Mapping) or x is ABSENT for x in both) or not any(map(_size, both)):
    return {} if _plain(first) == _plain(second) else {prefix: both}
  first, second = ({} if x is ABSENT else x for x in both)
  result = {}
  for key in sorted({*first, *second}, key=str):
    name = f"{prefix}.{key}" if prefix else str(key)
    result |= differences(first.get(key, ABSENT), second.get(key, ABSENT), prefix=name)
  return result


def describe(
  different: Mapping[str, tuple[Any, Any]], *, first: str = "there", second: str = "here"
) -> str:
  """Lines "key: 1 there, 2 here", at most 20 of them, for an error message.

  Args:
    different: What `differences` returned.
    first: Where the first dict's values are, in words.
    second: Where the second dict's values are.

  Returns:
    Indented lines without a newline at the end; long values are shortened in the middle.
  """
  lines = [
    f"  {key}: {_shorten.repr(one)} {first}, {_shorten.repr(other)} {second}"
    for key, (one, other) in different.items()
  ]
  return "\n".join(lines[:20] + [f"  ... and {len(lines) - 20} more"] * (len(lines) > 20))


def _size(value: Any) -> int:
  return len(value) if isinstance(value, Mapping) else 0


def _plain(value: Any) -> Any:
  if isinstance(value, tuple | list):
    return [_plain(item) for item in value]
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  return value
