"""Types of the values in JSON that others wrote."""

import pytest

from dmpo_jax.common import json_types
from dmpo_jax.common.json_types import COUNT, NUMBER, Dict, List
from dmpo_jax.errors import InputError

SCHEMA = {"name": str, "files": Dict({"bytes": COUNT}, "[a-z]+"), "sizes": List(COUNT)}
VALUE = {"name": "x", "files": {"a": {"bytes": 3}}, "sizes": [1, 2], "more": None}


def test_a_value_of_the_schema_is_returned_with_its_other_keys():
  assert json_types.check(VALUE, SCHEMA, "f.json") is VALUE


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    ({"name": 3}, "name is 3, not a str"),
    ({"name": True}, "name is True, not a str"),
    ({"files": []}, r"files is \[\], not a object"),
    ({"files": {"../x": {"bytes": 1}}}, r"files has the key '\.\./x'"),
    ({"files": {"a": {}}}, r"files\.a\.bytes is missing"),
    ({"files": {"a": {"bytes": -1}}}, r"files\.a\.bytes is -1"),
    ({"files": {"a": {"bytes": True}}}, r"files\.a\.bytes is True"),
    ({"files": {"a": {"bytes": 1.0}}}, r"files\.a\.bytes is 1\.0"),
    ({"files": {"a": {"bytes": 2**60}}}, r"files\.a\.bytes is 1152921504606846976"),
    ({"sizes": [1, "2"]}, r"sizes\[1\] is '2'"),
    ({"sizes": None}, "sizes is None, not a list"),
  ],
)
def test_a_value_of_another_type_is_named_by_its_key(change, problem):
  with pytest.raises(InputError, match=f"f.json is damaged: {problem}; copy it"):
    json_types.check(VALUE | change, SCHEMA, "f.json", advice="copy it")


@pytest.mark.parametrize("value", [0, -1, 1.5, 1e300])
def test_a_finite_number_is_a_number(value):
  assert json_types.check(value, NUMBER, "f", key="x") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_anything_else_is_no_number(value):
  with pytest.raises(InputError, match="x is"):
    json_types.check(value, NUMBER, "f", key="x")
