"""Types of the values in JSON that others wrote."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dmpo_jax.errors import InputError, short

# A schema is a type, `Dict`, `List`, a dict of schemas by required key (other keys are allowed), or
# `Range`.
Schema = Any


class Dict(NamedTuple):
  """An object of any number of keys.

  Attributes:
    values: Schema of each value.
    keys: Pattern of the keys.
  """

  values: Schema
  keys: str = ".*"


class List(NamedTuple):
  """A list of any length.

  Attributes:
    items: Schema of each item.
  """

  items: Schema


class Range(NamedTuple):
  """A whole number, or with floats as bounds any finite number, in a range."""

  least: float
  most: float


COUNT = Range(0, 2**53)
POSITIVE = Range(1, 2**53)
NUMBER = Range(-math.inf, math.inf)


def check(value: Any, schema: Schema, where: object, *, advice: str = "", key: str = "") -> Any:
  """Checks the types of a value and of all values in it.

  Args:
    value: A value of JSON.
    schema: What is expected.
    where: The file, for the message.
    advice: What the user can do about it.
    key: Dotted key of the value in the file.

  Returns:
    The value.

  Raises:
    InputError: A key is missing, or a value is of another type or out of range.
  """
  deeper = {"where": where, "advice": advice}
  if isinstance(schema, dict):
    _check_kind(value, Mapping, key, **deeper)
    for name, inner in schema.items():
      inner_key = f"{key}.{name}" if key else name
      if name not in value:
        raise _error(f"{inner_key} is missing", **deeper)
      check(value[name], inner, key=inner_key, **deeper)
  elif isinstance(schema, Dict):
    _check_kind(value, Mapping, key, **deeper)
    for name, item in value.items():
      if not re.fullmatch(schema.keys, name, re.DOTALL):
        raise _error(f"{key} has the key {short(name)}", **deeper)
      check(item, schema.values, key=f"{key}.{name}", **deeper)
  elif isinstance(schema, List):
    _check_kind(value, list, key, **deeper)
    for i, item in enumerate(value):
      check(item, schema.items, key=f"{key}[{i}]", **deeper)
  elif isinstance(schema, Range):
    whole = isinstance(schema.least, int) and isinstance(schema.most, int)
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not _in(value, schema):
      raise _error(f"{key} is {short(value)}", **deeper)
  else:
    _check_kind(value, schema, key, **deeper)
  return value


def _in(value: float, limits: Range) -> bool:
  return limits.least <= value <= limits.most and (isinstance(value, int) or math.isfinite(value))


def _check_kind(value: Any, kind: type, key: str, *, where: object, advice: str) -> None:
  wrong_bool = isinstance(value, bool) and kind is not bool
  if wrong_bool or not isinstance(value, kind):
    name = "object" if kind is Mapping or kind is dict else kind.__name__
    raise _error(f"{key or 'the file'} is {short(value)}, not a {name}", where, advice)


def _error(problem: str, where: object, advice: str) -> InputError:
  return InputError(f"{where} is damaged: {problem}{f'; {advice}' if advice else ''}")
