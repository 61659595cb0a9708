"""The map between parameter trees and torch state dicts."""

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from dmpo_jax import interop
from dmpo_jax.errors import InputError


def draw(*shape):
  return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.fixture
def params():
  """Every kind of leaf, no two sizes alike."""
  return {
    "blocks": {
      "0": {"proj": {"kernel": draw(3, 5), "bias": draw(5)}},
      "10": {"conv": {"kernel": draw(3, 7, 2, 4), "bias": draw(4)}},
    },
    "norm": {"scale": draw(6), "bias": draw(6)},
    "token": {"embedding": draw(9, 8)},
  }


def shapes(tree):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_names_are_those_of_torch(params):
  assert {name: array.shape for name, array in interop.to_torch_state(params).items()} == {
    "blocks.0.proj.weight": (5, 3),
    "blocks.0.proj.bias": (5,),
    "blocks.10.conv.weight": (4, 2, 3, 7),
    "blocks.10.conv.bias": (4,),
    "norm.weight": (6,),
    "norm.bias": (6,),
    "token.weight": (9, 8),
  }


def test_a_linear_kernel_computes_the_same_in_torch(params):
  x = draw(2, 3)
  weight = torch.from_numpy(interop.to_torch_state(params)["blocks.0.proj.weight"])
  theirs = torch.nn.functional.linear(torch.from_numpy(x), weight)
  np.testing.assert_allclose(x @ params["blocks"]["0"]["proj"]["kernel"], theirs, rtol=1e-5)


def test_a_convolution_with_an_oblong_kernel_computes_the_same_in_torch(params):
  x = draw(2, 8, 9, 2)
  kernel = params["blocks"]["10"]["conv"]["kernel"]
  ours = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  weight = torch.from_numpy(interop.to_torch_state(params)["blocks.10.conv.weight"])
  theirs = torch.nn.functional.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), weight)
  np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_every_array_of_a_state_is_contiguous(params):
  assert all(array.flags.c_contiguous for array in interop.to_torch_state(params).values())


def test_every_array_of_a_tree_is_contiguous(params):
  back = interop.from_torch_state(interop.to_torch_state(params), shapes(params))
  assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(back))


def test_a_tree_survives_the_way_there_and_back_bit_for_bit(params):
  back = interop.from_torch_state(interop.to_torch_state(params), shapes(params))
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_jax_arrays_are_taken_as_leaves(params):
  state = interop.to_torch_state(jax.tree.map(jax.numpy.asarray, params))
  for name, array in interop.to_torch_state(params).items():
    np.testing.assert_array_equal(state[name], array)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_entries_become_float32_of_the_same_value(params, dtype):
  half = {name: a.astype(dtype) for name, a in interop.to_torch_state(params).items()}
  back = interop.from_torch_state(half, shapes(params))
  expected = params["blocks"]["0"]["proj"]["kernel"].astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(back["blocks"]["0"]["proj"]["kernel"], expected)
  assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(np.float32)}


def test_a_tree_keeps_its_dtype_on_the_way_to_torch(params):
  half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
  assert {a.dtype.name for a in interop.to_torch_state(half).values()} == {"bfloat16"}


def test_position_ids_are_ignored(params):
  state = interop.to_torch_state(params) | {"token.position_ids": np.arange(9)[None]}
  back = interop.from_torch_state(state, shapes(params))
  assert list(back["token"]) == ["embedding"]


def test_all_entries_that_do_not_fit_are_listed_in_one_error(params):
  state = interop.to_torch_state(params)
  del state["norm.bias"], state["token.weight"]
  state["norm.extra"] = draw(6)
  state["blocks.0.proj.weight"] = state["blocks.0.proj.weight"].T
  state["blocks.0.proj.bias"] = np.arange(5)
  with pytest.raises(InputError) as error:
    interop.from_torch_state(state, shapes(params))
  assert sorted(str(error.value).splitlines()[1:]) == [
    "  misshapen: blocks.0.proj.weight is [3, 5], expected [5, 3]",
    "  missing: norm.bias",
    "  missing: token.weight",
    "  surplus: norm.extra",
    "  wrong dtype: blocks.0.proj.bias is int64, expected float32 or float16 or bfloat16",
  ]


def test_a_leaf_without_a_torch_name_is_refused():
  with pytest.raises(InputError, match=r"parameter 'a\.gamma' has no torch name"):
    interop.to_torch_state({"a": {"gamma": draw(2)}})


def test_two_leaves_that_would_share_a_torch_name_are_refused():
  with pytest.raises(InputError, match=r"'a\.kernel' and 'a\.scale' would share"):
    interop.to_torch_state({"a": {"kernel": draw(2, 3), "scale": draw(3)}})
