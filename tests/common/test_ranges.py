"""Ranges of numbers: what is inside, also after rounding to float32."""

import math

import numpy as np
import pytest

from dmpo_jax.common.ranges import (
  Integers,
  Interval,
  as_float32,
  check_integer,
  check_number,
  check_range,
)

HALF_OPEN = Interval(0, 1, closed_low=True)


@pytest.mark.parametrize("value", [0, 0.5, np.float64(0.25), 1 - 1e-7, -0.0])
def test_a_number_of_the_interval_is_returned_as_a_float(value):
  result = check_number("x", value, HALF_OPEN)
  assert type(result) is float
  assert result == value


@pytest.mark.parametrize(
  "value", [1, -1e-9, math.nan, math.inf, -math.inf, True, np.True_, "0.5", None, 10**400, [0.5]]
)
def test_another_value_is_refused_by_name_and_range(value):
  with pytest.raises(ValueError, match=r"^x must be a number in \[0, 1\), got "):
    check_number("x", value, HALF_OPEN)


def test_a_number_that_float32_rounds_out_of_the_interval_is_refused():
  with pytest.raises(ValueError, match=r"in \[0, 1\), got 0.99999999999, which is 1 in float32"):
    check_number("x", 0.99999999999, HALF_OPEN)
  with pytest.raises(ValueError, match=r"in \(0, 1\), got 1e-50, which is 0 in float32"):
    check_number("x", 1e-50, Interval(0, 1))


def test_closed_ends_belong_to_the_interval_though_float32_rounds_them():
  interval = Interval(1e-12, 0.999999, closed_low=True, closed_high=True)
  for end in (interval.low, interval.high):
    assert check_number("x", end, interval) == end


def test_numbers_below_the_smallest_normal_one_are_0_in_float32():
  assert as_float32(1e-39) == 0
  assert as_float32(1.2e-38) > 0
  assert as_float32(1e39) == math.inf


@pytest.mark.parametrize("value", [-1, 11, 3.0, True, "3", None, math.nan])
def test_what_is_no_integer_of_the_range_is_refused_by_name_and_range(value):
  with pytest.raises(ValueError, match=r"^n must be an integer from 0 to 10, got .{1,80}$"):
    check_integer("n", value, Integers(0, 10))


def test_an_integer_of_more_digits_than_python_prints_is_refused_in_a_short_message():
  with pytest.raises(ValueError, match=r"^n must be an integer from 0 to 10, got .{1,80}$"):
    check_integer("n", 10**5000, Integers(0, 10))


def test_the_kind_of_range_decides_about_the_kind_of_number():
  assert check_range("n", np.int64(3), Integers(0, 10)) == 3
  assert check_range("x", 3, Interval(0, 10)) == 3.0
