"""A number for each array that changes with its bytes and not with how it lies on devices."""

import concurrent.futures
import hashlib
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

THREADS = 8
CHUNK = 2**18  # elements at a time: what is computed for them stays in a core's cache


def checksums(tree: Any) -> dict[str, int]:
  """The checksum of each array of a tree; each process reads what its own devices hold.

      Σ_i w_i b_i mod 2³²,   w_i odd

  over an array's elements b_i, read as unsigned integers, with weights w_i that are hashes of i, an
  element's place in the whole array. A sum of integers does not depend on its order, so neither on
  how many devices and processes hold parts of the array: only the sums are brought together. Odd
  weights are invertible, so no change of one element goes unnoticed; of several, one in 2³² does.

  Args:
    tree: Arrays of elements of 8, 16 or 32 bits, on devices or on the host.

  Returns:
    Path -> integer in [0, 2³²). Of arrays that lie on devices of several processes too, all of them
    call this, and all get the result.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    sums = np.array(list(pool.map(_of_this_process, [leaf for _, leaf in leaves])), np.uint32)
  shared = np.array([_is_shared(leaf) for _, leaf in leaves], bool)
  if shared.any():
    everyones = multihost_utils.process_allgather(sums)  # [processes, leaves]
    sums = np.where(shared, everyones.sum(axis=0, dtype=np.uint32), sums)
  return dict(zip(names, sums.tolist(), strict=True))


def digest(tree: Any) -> str:
  """A short digest of a tree: of its paths and `checksums`, wherever its arrays lie."""
  return hashlib.sha256(repr(sorted(checksums(tree).items())).encode()).hexdigest()[:16]


def _is_shared(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _of_this_process(leaf: Any) -> int:
  """The sum over the parts of an array that this process holds and no process before it."""
  if not isinstance(leaf, jax.Array):
    return _sum(np.asarray(leaf), (0,) * np.ndim(leaf), np.shape(leaf))
  total = 0
  for shard in leaf.addressable_shards:
    if shard.replica_id == 0:
      begins = tuple(part.start or 0 for part in shard.index)
      total += _sum(np.asarray(shard.data), begins, leaf.shape)
  return total % 2**32


def _sum(part: np.ndarray, begins: tuple[int, ...], shape: tuple[int, ...]) -> int:
  """The sum over the part of an array that begins at some index of the whole."""
  # Places are taken modulo 2³², in which all of this is computed.
  places = np.zeros(1, np.uint32)
  for axis, (begin, size) in enumerate(zip(begins, part.shape, strict=True)):
    stride = math.prod(shape[axis + 1 :])
    steps = (np.arange(begin, begin + size, dtype=np.uint64) * np.uint64(stride)).astype(np.uint32)
    if axis == part.ndim - 1:
      break
    places = np.add.outer(places, steps).reshape(-1)
  else:  # a scalar
    steps = np.zeros(1, np.uint32)
  bits = np.dtype(f"u{part.dtype.itemsize}")
  words = np.ascontiguousarray(part).reshape(-1).view(bits).reshape(len(places), len(steps))
  total, rows = 0, max(1, CHUNK // max(1, len(steps)))
  for row in range(0, len(places), rows):
    weights = np.add.outer(places[row : row + rows], steps)
    # Steps of the finalizer of MurmurHash3 (Austin Appleby, public domain).
    weights *= np.uint32(0x85EBCA6B)
    weights ^= weights >> np.uint32(15)
    weights *= np.uint32(0xC2B2AE35)
    weights |= np.uint32(1)
    weights *= words[row : row + rows].astype(np.uint32)
    total += int(weights.sum(dtype=np.uint32))
  return total % 2**32
