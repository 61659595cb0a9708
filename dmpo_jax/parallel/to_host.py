"""Copies of sharded arrays on the host."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def on_host(tree: Any, *, keep: bool = True) -> Any:
  """The tree as numpy arrays; devices hold one full array at a time.

  Where arrays are sharded over several processes, all of these must call this together.

  Args:
    tree: Arrays.
    keep: Whether this process copies them to its host; it takes part in all-gathers in any case.

  Returns:
    The tree with numpy arrays; None where `keep` is false.
  """
  leaves, structure = jax.tree.flatten(tree)
  arrays = []
  for leaf in leaves:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      leaf = _replicated(leaf).addressable_data(0)
    if keep:
      arrays.append(np.asarray(leaf))
  return jax.tree.unflatten(structure, arrays) if keep else None


def _replicated(array: jax.Array) -> jax.Array:
  """The full array on each device of its mesh."""
  if array.is_fully_replicated:
    return array
  replicated = NamedSharding(array.sharding.mesh, PartitionSpec())
  return jax.jit(lambda x: x, out_shardings=replicated)(array)
