"""Pure functions of a parameter tree: nested dicts with string keys and arrays as leaves."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
  """Names every leaf by its path, joined with dots: `{"a": {"0": x}}` becomes `{"a.0": x}`.

  Args:
    tree: Nested dicts with string keys; an empty dict has no leaf and no name.

  Returns:
    A flat dict in the order of the tree.

  Raises:
    InputError: A key is not a string, or contains a dot.
  """
  flat = {}

  def walk(prefix: str, node: Any) -> None:
    if not isinstance(node, Mapping):
      flat[prefix[:-1]] = node
      return
    for key, child in node.items():
      if not isinstance(key, str) or "." in key:
        raise InputError(f"keys of a parameter tree are strings without dots, got {key!r}")
      walk(f"{prefix}{key}.", child)

  walk("", tree)
  return flat


def unflatten(flat: Tree) -> dict[str, Any]:
  """Rebuilds the nested tree from dotted names; the inverse of `flatten`.

  Args:
    flat: A leaf per dotted name.

  Returns:
    Nested dicts.

  Raises:
    InputError: A name is both a leaf and a branch.
  """
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *branches, last = name.split(".")
    node = tree
    for branch in branches:
      node = node.setdefault(branch, {})
      if not isinstance(node, dict):
        raise InputError(f"{name!r} is below {branch!r}, which is a leaf already")
    if last in node:
      raise InputError(f"{name!r} is a leaf, and a branch or a leaf of that name exists already")
    node[last] = leaf
  return tree


def ema(current: Tree, new: Tree, decay: float | jax.Array) -> Tree:
  """Next exponential moving average: decay * current + (1 - decay) * new, leaf by leaf.

  Args:
    current: The EMA so far; the result has its dtypes.
    new: A tree of the same structure and shapes.
    decay: In [0, 1]; an array where it changes during a run.

  Returns:
    The next EMA, bit for bit `new` at decay 0 and `current` at decay 1.
  """

  def blend(a: jax.Array, n: jax.Array) -> jax.Array:
    mixed = decay * a.astype(jnp.float32) + (1 - decay) * n.astype(jnp.float32)
    return mixed.astype(a.dtype)

  return jax.tree.map(blend, current, new)


def count(tree: Tree) -> int:
  """The number of parameters in the tree.

  Args:
    tree: Arrays or `jax.ShapeDtypeStruct`s as leaves.

  Returns:
    The sum of the leaves' sizes.
  """
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def string_keys(tree: Mapping[Any, Any]) -> dict[str, Any]:
  """The tree with list indices as strings, as in public parameter trees."""
  return {
    str(key): string_keys(child) if isinstance(child, Mapping) else child
    for key, child in tree.items()
  }


def int_keys(tree: Tree) -> dict[str | int, Any]:
  """The inverse of `string_keys`: keys of digits become list indices, as NNX expects."""
  return {
    int(key) if key.isdigit() else key: int_keys(child) if isinstance(child, Mapping) else child
    for key, child in tree.items()
  }
