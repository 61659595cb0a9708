"""Typed access to the values of a row: each function returns its type or raises an InputError."""

import decimal
import math
import re
from collections.abc import Mapping

from dmpo_jax.data.pairs import check_probability, check_seed, check_text
from dmpo_jax.errors import InputError, short

Row = Mapping[str, object]
# A number as programs write it. Python's float also takes "0_1" and other scripts' digits.
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
# A comma is a decimal comma, unless it may separate thousands: "0,75" and "4,5", but not "1,234".
DECIMAL_COMMA = re.compile(r"[-+]?(?![1-9][0-9]{0,2},[0-9]{3}$)[0-9]*,[0-9]+")
TRUTH = {"true": 1.0, "false": 0.0}


def get(row: Row, name: str) -> object:
  """The value of a required column.

  Raises:
    InputError: The row has no such column.
  """
  if name not in row:
    present = ", ".join(short(key, 40) for key in list(row)[:20])
    raise InputError(f"column {name!r} is missing (present: {present or 'none'})")
  return row[name]


def text(row: Row, name: str) -> str:
  """The text in a column.

  Raises:
    InputError: The value is missing, no text, or not UTF-8.
  """
  value = get(row, name)
  if isinstance(value, bytes):  # parquet written without the logical type of strings
    try:
      return value.decode("utf-8")
    except UnicodeDecodeError as error:
      raise InputError(f"{name} is not valid UTF-8: {value[:60]!r}") from error
  return check_text(name, value)


def label(row: Row, name: str) -> str:
  """An identifier, text or an integer, as text; "" if it is missing or null.

  Raises:
    InputError: The value is neither text nor an integer.
  """
  value = row.get(name)
  if value is None:
    return ""
  if isinstance(value, float | decimal.Decimal) and value == value // 1 and abs(value) < 2**53:
    value = int(value)  # pandas writes integers beside missing values so
  if isinstance(value, bool) or not isinstance(value, int | str | bytes):
    raise InputError(f"{name} must be text or an integer, got {_quote(value)}")
  return str(value) if isinstance(value, int) and abs(value) < 2**128 else text(row, name)


def identifier(row: Row, name: str) -> str:
  """A `label` in a required column.

  Raises:
    InputError: The row has no such column, or the value is empty or of another type.
  """
  get(row, name)
  value = label(row, name)
  if not value.strip():
    raise InputError(f"{name} must not be empty")
  return value


def number(row: Row, name: str) -> float:
  """The finite number in a column. Text is parsed, since CSV holds text only.

  Raises:
    InputError: The value is missing, no number, NaN or infinite.
  """
  value = get(row, name)
  if isinstance(value, str):
    value = number_of_text(value, name)
  if isinstance(value, decimal.Decimal):
    value = float(value)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"{name} must be a number, got {_quote(value)}")
  if not (isinstance(value, int) and abs(value) > 2**1000) and math.isfinite(value):
    return float(value)
  raise InputError(f"{name} must be a finite number, got {_quote(value)}")


def seed(row: Row, name: str) -> int:
  """The seed in a column, a whole number in [0, 2^32).

  Raises:
    InputError: The value is missing, no number, or out of range.
  """
  value = number(row, name)
  return check_seed(name, int(value) if value.is_integer() else value)


def number_of_text(value: str, name: str) -> float:
  """The number that a text holds, such as "0.75" or " 1e-3 ".

  Raises:
    InputError: The text is no number.
  """
  plain = value.strip()
  if DECIMAL_COMMA.fullmatch(plain):
    plain = plain.replace(",", ".")
  if NUMBER.fullmatch(plain):
    return float(plain)
  if plain.lstrip("+-").lower() in ("nan", "inf", "infinity"):
    raise InputError(f"{name} must be a finite number, got {_quote(value)}")
  raise InputError(f"{name} must be a number, got {_quote(value)}")


def probability(row: Row, name: str) -> float:
  """The probability in a column: a number in [0, 1], or true or false.

  Raises:
    InputError: The value is missing, no number, or out of range.
  """
  value = get(row, name)
  if isinstance(value, str):
    value = TRUTH.get(value.strip().lower(), value)
  value = float(value) if isinstance(value, bool) else value
  return check_probability(name, number({name: value}, name))


def is_missing(row: Row, name: str) -> bool:
  """Whether a row has no value in a column: absent, null, or empty text."""
  value = row.get(name)
  return value is None or (isinstance(value, str) and not value.strip())


def sequence(row: Row, name: str) -> list:
  """The list in a column.

  Raises:
    InputError: The value is missing or no list.
  """
  value = get(row, name)
  if not isinstance(value, list):
    raise InputError(f"{name} must be a list, got {_quote(value)}")
  return value


def numbers(row: Row, name: str) -> list[float]:
  """The finite numbers of the list in a column; see `number`."""
  return [number({name: value}, name) for value in sequence(row, name)]


def image(row: Row, name: str) -> bytes | str:
  """An image in a column: encoded bytes, a path, or the hub's struct of both.

  Raises:
    InputError: The value is missing or none of these.
  """
  value = get(row, name)
  if isinstance(value, dict):  # the datasets library's Image: {"bytes": ..., "path": ...}
    value = value.get("bytes") or value.get("path")
  if isinstance(value, bytes) and value:
    return value
  if isinstance(value, str) and value:
    return check_text(name, value)
  raise InputError(f"{name} must hold an image's bytes or path, got {_quote(value)}")


def _quote(value: object) -> str:
  """Type and beginning of a value, for a message."""
  if isinstance(value, int) and abs(value) > 2**64:
    return f"an integer of {value.bit_length()} bits"
  try:
    return f"{type(value).__name__} {short(value, 60)}"
  except (ValueError, RecursionError):  # a nested integer of thousands of digits
    return type(value).__name__
