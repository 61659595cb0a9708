"""Conversion between our parameter trees and torch state dicts: few leaf names, two layouts."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.models import trees

LEAF_NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "bias": "bias",
  "class_embedding": "class_embedding",
  "cls_token": "cls_token",
  "pos_embed": "pos_embed",
  "logit_scale": "logit_scale",
}

# Last parts of the names of arrays in checkpoints that are no parameters. Those that follow from a
# network's config are in `models.buffers`.
BUFFERS = frozenset({"position_ids", "pos_embed"})

# Edge of the square blocks in which kernels are transposed.
BLOCK = 128

FLOATS = ("float32", "float16", "bfloat16")


def to_torch_state(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A torch state dict with the values of a parameter tree.

  kernel, scale and embedding become `weight`. The output axis of a kernel moves to the front, its
  input axis next: Linear [I, O] -> [O, I], convolution [H, W, I, O] -> [O, I, H, W].

  Args:
    params: Nested dict with string keys; leaves are arrays named as in `LEAF_NAMES`.

  Returns:
    Dotted torch name -> C-contiguous array in the leaf's dtype: safetensors writes other arrays
    wrongly without an error.

  Raises:
    InputError: A leaf has another name, or two leaves have one torch name.
  """
  leaves = trees.flatten(params)
  return {name: to_torch(leaves[path], path) for name, path in torch_names(params).items()}


def from_torch_state(
  state: Mapping[str, Any], abstract_params: Mapping[str, Any]
) -> dict[str, Any]:
  """A parameter tree from a torch state dict; the inverse of `to_torch_state`.

  Args:
    state: Torch name -> float32, float16 or bfloat16 array, or an object with a shape and a dtype
      that converts to an array. Buffers (position_ids, pos_embed) are ignored.
    abstract_params: Tree of the result; its leaves need a `shape` and a `dtype` only.

  Returns:
    A tree of C-contiguous numpy arrays with the structure, shapes and dtypes of `abstract_params`.

  Raises:
    InputError: Lists every entry that is missing, surplus, misshapen or no float.
  """
  check_state(state, abstract_params)
  leaves = trees.flatten(abstract_params)
  filled = {}
  for name, path in torch_names(abstract_params).items():
    array = np.asarray(state[name])
    array = array.transpose(np.argsort(torch_axes(path, array.ndim)))
    filled[path] = np.asarray(array, dtype=leaves[path].dtype, order="C")
  return trees.unflatten(filled)


def check_state(
  state: Mapping[str, Any], abstract_params: Mapping[str, Any], *, strict: bool = True
) -> list[str]:
  """Raises unless a torch state dict fits a parameter tree by name, shape and dtype.

  Args:
    state: Torch name -> object with a shape and a dtype; values are not read.
    abstract_params: The parameter tree; its leaves need a `shape` and a `dtype` only.
    strict: Whether surplus entries are refused even if no other entry is wrong.

  Returns:
    Names of surplus entries, sorted, without buffers.

  Raises:
    InputError: Lists every entry that is missing, surplus, misshapen or no float.
  """
  leaves = trees.flatten(abstract_params)
  names = torch_names(abstract_params)
  problems = [f"missing: {name}" for name in names if name not in state]
  surplus = sorted(n for n in state if n not in names and n.rpartition(".")[2] not in BUFFERS)
  for name, array in state.items():
    if name not in names:
      continue
    expected = torch_shape(names[name], leaves[names[name]].shape)
    if tuple(array.shape) != expected:
      problems.append(f"misshapen: {name} is {list(array.shape)}, expected {list(expected)}")
    elif str(array.dtype) not in FLOATS:
      problems.append(f"wrong dtype: {name} is {array.dtype}, expected {' or '.join(FLOATS)}")
  if problems or (strict and surplus):
    problems += [f"surplus: {name}" for name in surplus]
    raise InputError(
      f"{len(problems)} entries of the state dict (torch's names and layout) do not fit the "
      "network that its config describes:" + "".join(f"\n  {problem}" for problem in problems)
    )
  return surplus


def torch_names(params: Mapping[str, Any]) -> dict[str, str]:
  """The torch name of every leaf, in tree order.

  Args:
    params: A parameter tree, abstract or not.

  Returns:
    Torch name -> path of the leaf, dotted.

  Raises:
    InputError: A leaf has an unknown name, or two leaves have one torch name.
  """
  names: dict[str, str] = {}
  for path in trees.flatten(params):
    module, _, leaf = path.rpartition(".")
    if leaf not in LEAF_NAMES:
      raise InputError(
        f"parameter {path!r} has no torch name: a leaf is named {', '.join(LEAF_NAMES)}"
      )
    name = f"{module}.{LEAF_NAMES[leaf]}" if module else LEAF_NAMES[leaf]
    if name in names:
      raise InputError(f"parameters {names[name]!r} and {path!r} would share the name {name!r}")
    names[name] = path
  return names


def torch_axes(path: str, ndim: int) -> tuple[int, ...]:
  """Our axes in torch's order: a leaf in torch's layout is `leaf.transpose(torch_axes(...))`."""
  if path.rpartition(".")[2] != "kernel":
    return tuple(range(ndim))
  return (ndim - 1, ndim - 2, *range(ndim - 2))


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape in torch's layout of a leaf with our shape."""
  return tuple(shape[axis] for axis in torch_axes(path, len(shape)))


def to_torch(leaf: Any, path: str, dtype: str | None = None) -> np.ndarray:
  """A leaf in torch's layout, C-contiguous, in a dtype (None: its own)."""
  array = np.asarray(leaf)
  return cast(array.transpose(torch_axes(path, array.ndim)), dtype, path)


def cast(array: np.ndarray, dtype: str | None, path: str) -> np.ndarray:
  """The array, C-contiguous and in a dtype (None: its own); copied only where necessary.

  Raises:
    InputError: A number overflows the dtype.
  """
  target = array.dtype if dtype is None else jnp.dtype(dtype)
  if array.flags.c_contiguous and array.dtype == target:
    return array
  new = np.empty(array.shape, target)
  with np.errstate(over="ignore"):
    _copy_blocks(new, array)
  if jnp.finfo(target).max < jnp.finfo(array.dtype).max and np.isinf(new).any():
    lost = np.isinf(new) & np.isfinite(array)
    if lost.any():
      largest = np.abs(array[lost]).astype(np.float32).max()
      raise InputError(
        f"{path} has the value {largest:g}, which is infinite in {dtype}, whose largest number is "
        f"{float(jnp.finfo(new.dtype).max):g}; choose bfloat16 or float32"
      )
  return new


def _copy_blocks(target: np.ndarray, source: np.ndarray) -> None:
  """`target[...] = source`, in blocks that fit the cache: numpy transposes row by row, slowly."""
  if source.ndim < 2:
    target[...] = source
    return
  a, b = np.argsort(source.shape, kind="stable")[-2:]
  for i in range(0, source.shape[a], BLOCK):
    for j in range(0, source.shape[b], BLOCK):
      index = [slice(None)] * source.ndim
      index[a], index[b] = slice(i, i + BLOCK), slice(j, j + BLOCK)
      target[tuple(index)] = source[tuple(index)]


def float_name(dtype: Any) -> str | None:
  """The name of a dtype for parameters; None stays None (the stored dtype).

  Raises:
    InputError: The dtype does not exist or is not one of `FLOATS`.
  """
  try:
    name = None if dtype is None else jnp.dtype(dtype).name
  except TypeError:
    name = ""
  if name is not None and name not in FLOATS:
    raise InputError(
      f"dtype is {dtype!r}; expected {', '.join(FLOATS)}, or None to leave it as it is"
    )
  return name
