"""Checksums of arrays, which depend on their bytes and not on their sharding."""

import concurrent.futures
import hashlib
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

THREADS = 8
CHUNK = 2**18  # elements at a time, so that intermediate results stay in a core's cache


def checksums(tree: Any) -> dict[str, int]:
  """Checksum of each array of a tree; each process reads the shards on its own devices.

      Σ_i w_i b_i mod 2³²,   w_i odd

  over an array's elements b_i, read as unsigned integers, with weights w_i that are hashes of i, an
  element's index in the full array. A sum of integers does not depend on its order, and so not on
  the sharding: processes exchange only their sums. Odd weights are invertible, so that every change
  of one element is detected; of changes of several elements one in 2³² is not.

  Args:
    tree: Arrays of elements of 8, 16 or 32 bits, on devices or on the host.

  Returns:
    Path -> integer in [0, 2³²). Where arrays are sharded over several processes, all of these must
    call this together, and all get the result.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    sums = np.array(list(pool.map(_local_sum, [leaf for _, leaf in leaves])), np.uint32)
  shared = np.array([_is_shared(leaf) for _, leaf in leaves], bool)
  if shared.any():
    gathered = multihost_utils.process_allgather(sums)  # [processes, leaves]
    sums = np.where(shared, gathered.sum(axis=0, dtype=np.uint32), sums)
  return dict(zip(names, sums.tolist(), strict=True))


def tree_checksum(tree: Any) -> str:
  """A short hash of a tree's paths and `checksums`."""
  return hashlib.sha256(repr(sorted(checksums(tree).items())).encode()).hexdigest()[:16]


def _is_shared(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _local_sum(leaf: Any) -> int:
  """The sum over the first replicas of an array's shards on this process."""
  if not isinstance(leaf, jax.Array):
    return _sum(np.asarray(leaf), (0,) * np.ndim(leaf), np.shape(leaf))
  total = 0
  for shard in leaf.addressable_shards:
    if shard.replica_id == 0:
      starts = tuple(axis.start or 0 for axis in shard.index)
      total += _sum(np.asarray(shard.data), starts, leaf.shape)
  return total % 2**32


def _sum(shard: np.ndarray, starts: tuple[int, ...], shape: tuple[int, ...]) -> int:
  """The sum over a shard that starts at an index of the full array of this shape."""
  # Indices are computed modulo 2³², as everything here.
  offsets = np.zeros(1, np.uint32)
  for axis, (start, size) in enumerate(zip(starts, shard.shape, strict=True)):
    stride = math.prod(shape[axis + 1 :])
    steps = (np.arange(start, start + size, dtype=np.uint64) * np.uint64(stride)).astype(np.uint32)
    if axis == shard.ndim - 1:
      break
    offsets = np.add.outer(offsets, steps).reshape(-1)
  else:  # a scalar
    steps = np.zeros(1, np.uint32)
  bits = np.dtype(f"u{shard.dtype.itemsize}")
  words = np.ascontiguousarray(shard).reshape(-1).view(bits).reshape(len(offsets), len(steps))
  total, rows = 0, max(1, CHUNK // max(1, len(steps)))
  for row in range(0, len(offsets), rows):
    weights = np.add.outer(offsets[row : row + rows], steps)
    # Steps of the finalizer of MurmurHash3 (Austin Appleby, public domain).
    weights *= np.uint32(0x85EBCA6B)
    weights ^= weights >> np.uint32(15)
    weights *= np.uint32(0xC2B2AE35)
    weights |= np.uint32(1)
    weights *= words[row : row + rows].astype(np.uint32)
    total += int(weights.sum(dtype=np.uint32))
  return total % 2**32
