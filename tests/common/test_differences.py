"""Differences between nested dicts: which keys they name, and their lines in a message."""

import json

from dmpo_jax.common.differences import ABSENT, describe, differences

FIRST = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}}


def test_equal_dicts_have_no_differences():
  assert differences(FIRST, {"b": {"d": {"e": None}, "c": [1, 2]}, "a": 1}) == {}
  assert differences({}, {}) == {}


def test_a_dict_equals_the_one_read_back_from_its_json():
  tree = {"a": (1, 2.5, (3,)), "b": {"c": ({"d": (4,)},)}}
  assert differences(json.loads(json.dumps(tree)), tree) == {}


def test_values_are_named_by_their_dotted_keys():
  second = {"a": 2, "b": {"c": [1], "d": {"e": None}}}
  assert differences(FIRST, second) == {"a": (1, 2), "b.c": ([1, 2], [1])}


def test_a_missing_key_is_absent():
  assert differences({"a": None}, {}) == {"a": (None, ABSENT)}
  assert differences({}, {"a": None}) == {"a": (ABSENT, None)}


def test_each_value_of_a_missing_section_is_absent():
  assert differences({}, {"a": {"b": 1, "c": {"d": 2}}}) == {
    "a.b": (ABSENT, 1),
    "a.c.d": (ABSENT, 2),
  }
  assert differences({"a": {"b": 1}}, {"a": {}}) == {"a.b": (1, ABSENT)}


def test_a_missing_empty_section_is_absent():
  assert differences({}, {"a": {}}) == {"a": (ABSENT, {})}


def test_a_section_differs_from_a_value():
  assert differences({"a": {"b": 1}}, {"a": 3}) == {"a": ({"b": 1}, 3)}


def test_a_prefix_stands_before_the_keys():
  assert differences({"a": 1}, {"a": 2}, prefix="b") == {"b.a": (1, 2)}


def test_a_message_has_a_line_for_each_difference():
  different = differences({"a": "x"}, {"a": "y", "b": 1})
  assert describe(different) == "  a: 'x' there, 'y' here\n  b: absent there, 1 here"
  assert describe(different, first="saved", second="now").startswith("  a: 'x' saved, 'y' now")


def test_a_message_shortens_long_values_and_long_lists_of_differences():
  different = differences({"a": "x" * 1000, **dict.fromkeys(range(30), 1)}, {})
  lines = describe(different).splitlines()
  assert len(lines) == 21
  assert lines[-1] == "  ... and 11 more"
  assert len(lines[0]) < 300
