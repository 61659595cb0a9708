"""Pure functions of parameter trees."""

import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.models import trees

TREE = {"a": {"0": {"kernel": np.arange(6.0).reshape(2, 3)}, "10": {"bias": np.ones(4)}}, "b": 2.0}


def test_flatten_names_each_leaf_by_its_path():
  assert list(trees.flatten(TREE)) == ["a.0.kernel", "a.10.bias", "b"]


def test_unflatten_undoes_flatten():
  assert trees.unflatten(trees.flatten(TREE)) == TREE


@pytest.mark.parametrize("key", [0, "a.b"])
def test_a_key_that_is_no_string_or_has_a_dot_is_refused(key):
  with pytest.raises(InputError, match="strings without dots"):
    trees.flatten({"x": {key: np.ones(1)}})


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a")])
def test_a_name_that_is_leaf_and_branch_is_refused(names):
  with pytest.raises(InputError, match="leaf"):
    trees.unflatten({name: np.ones(1) for name in names})


def test_count_sums_the_sizes():
  assert trees.count({"a": np.ones((2, 3)), "b": {"c": np.ones(5)}}) == 11


def test_ema_is_the_weighted_mean():
  result = trees.ema({"x": np.float32([1, 2])}, {"x": np.float32([3, 6])}, 0.75)
  np.testing.assert_allclose(result["x"], [1.5, 3.0], rtol=1e-6)


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 0.3), (1.0, 0.1)])
def test_ema_at_decay_0_and_1_is_one_of_its_arguments_bit_for_bit(decay, expected):
  result = trees.ema({"x": np.float32([0.1])}, {"x": np.float32([0.3])}, decay)
  assert result["x"] == np.float32(expected)


def test_ema_keeps_the_dtype_of_the_current_ema():
  result = trees.ema({"x": np.ones(2, jnp.bfloat16)}, {"x": np.ones(2, np.float32)}, 0.5)
  assert result["x"].dtype == "bfloat16"


def test_int_keys_undoes_string_keys():
  tree = {"layers": {0: {"kernel": 1}, 10: {"kernel": 2}}, "to_q": {"kernel": 3}}
  assert list(trees.string_keys(tree)["layers"]) == ["0", "10"]
  assert trees.int_keys(trees.string_keys(tree)) == tree
