"""Ranges of numbers, and the checks of values that stand in configs."""

import math
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np

from dmpo_jax.errors import InputError, short


class Interval(NamedTuple):
  """An interval of finite numbers; its ends are excluded unless they are closed."""

  low: float
  high: float
  closed_low: bool = False
  closed_high: bool = False

  def __str__(self) -> str:
    left, right = "[" if self.closed_low else "(", "]" if self.closed_high else ")"
    return f"{left}{self.low:g}, {self.high:g}{right}"

  def __contains__(self, number: float) -> bool:
    low, high, closed_low, closed_high = self
    inside = low < number < high or (closed_low and number == low)
    return math.isfinite(number) and (inside or (closed_high and number == high))


class Integers(NamedTuple):
  """The integers from low to high, both included."""

  low: int
  high: int

  def __str__(self) -> str:
    return f"{self.low} to {self.high}"


def as_float32(number: float) -> float:
  """The number as computations in float32 see it: rounded, and 0 below its smallest normal one."""
  with np.errstate(over="ignore"):
    rounded = float(np.float32(number))
  return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded


def check_number(name: str, value: float, interval: Interval) -> float:
  """The value as a float, after a check that it is a real number in an interval, also in float32.

  Args:
    name: Name of the value, for the message.
    value: A number, or a scalar array.
    interval: The allowed numbers. One that float32 rounds to a number outside is refused too: a
      decay of 0.99999999999 is 1 there, and a scale of 1e-50 is 0.

  Raises:
    InputError: It is not; the message names it.
  """
  is_number = isinstance(value, Real) or getattr(value, "ndim", None) == 0
  try:
    number = float(value) if is_number and not _is_bool(value) else math.nan
  except OverflowError:  # an integer of more than 308 digits
    number = math.inf
  if number not in interval:
    raise InputError(f"{name} must be a number in {interval}, got {short(value)}")
  ends = interval._replace(low=as_float32(interval.low), high=as_float32(interval.high))
  if (rounded := as_float32(number)) not in ends:
    raise InputError(
      f"{name} must be a number in {interval}, got {value!r}, which is {rounded:g} in float32"
    )
  return number


def check_integer(name: str, value: int, integers: Integers) -> int:
  """The value as an int, after a check that it is an integer in a range.

  Args:
    name: Name of the value, for the message.
    value: An integer.
    integers: The allowed ones.

  Raises:
    InputError: It is not; the message names it.
  """
  is_integer = isinstance(value, Integral) and not _is_bool(value)
  if not (is_integer and integers.low <= value <= integers.high):
    raise InputError(f"{name} must be an integer from {integers}, got {short(value)}")
  return int(value)


def check_range(name: str, value: float, allowed: Interval | Integers) -> float:
  """`check_integer` or `check_number`, by the kind of range."""
  check = check_integer if isinstance(allowed, Integers) else check_number
  return check(name, value, allowed)


def _is_bool(value: object) -> bool:
  return isinstance(value, bool | np.bool_)
