"""Arrays that lie in parts on the devices of several processes, whole on the host."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def on_host(tree: Any, *, keep: bool = True) -> Any:
  """A tree of numpy arrays; one array at a time is whole on devices.

  Args:
    tree: Arrays; what lies on devices of other processes too, all processes gather together.
    keep: Whether this process wants them; else nothing comes to its host.

  Returns:
    The tree with numpy arrays; None where `keep` is false.
  """
  leaves, structure = jax.tree.flatten(tree)
  found = []
  for leaf in leaves:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      leaf = _whole(leaf).addressable_data(0)
    if keep:
      found.append(np.asarray(leaf))
  return jax.tree.unflatten(structure, found) if keep else None


def _whole(array: jax.Array) -> jax.Array:
  """The array, the same on all devices that hold a part of it."""
  if array.is_fully_replicated:
    return array
  everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
  return jax.jit(lambda x: x, out_shardings=everywhere)(array)
