"""Sharding inside a network: all-gathers of weights, shard_map over devices."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

WEIGHT = "weight"  # the name of a gathered weight in rematerialisation policies


class Placement(NamedTuple):
  """How a network runs on several devices; no result changes beyond rounding.

  Attributes:
    shard_map: Maps a function `(params, inputs) -> outputs` of one device to the same function of
      global arrays. Each device runs it on its shards of the parameters and its examples, which
      are the first axis of inputs and outputs.
    all_gather: Maps a device's shard of a parameter, already in the compute dtype, and the
      parameter's full shape to the full parameter. A layer calls it at each use, so that the
      gather moves the narrow dtype; inside a rematerialised block the gradient gathers again and
      nothing of it is saved.
  """

  shard_map: Callable[[Callable], Callable]
  all_gather: Callable[[jax.Array, tuple[int, ...]], jax.Array]


def shard_map(placement: Placement | None, function: Callable[[Any, Any], Any]) -> Callable:
  """`function(params, inputs)` over the devices of a placement; the function itself for None."""
  return function if placement is None else placement.shard_map(function)


def weight(
  parameter: jax.Array,
  dtype: jax.typing.DTypeLike,
  full_shape: tuple[int, ...],
  placement: Placement | None,
  scale: float = 1.0,
) -> jax.Array:
  """`scale * parameter`, cast and then gathered, so that the gather moves fewer bytes.

  Args:
    parameter: This device's shard.
    dtype: Compute dtype.
    full_shape: Shape of the full parameter.
    placement: How to gather it; None: the parameter is not sharded.
    scale: Multiplies the parameter after the cast, so that a parameter that is stored in the
      compute dtype gives the same result as one that is cast to it.

  Returns:
    The full parameter times scale, in dtype.
  """
  cast = parameter.astype(dtype)
  if scale != 1:
    cast = cast * scale
  if placement is None:
    return cast
  return jax.ad_checkpoint.checkpoint_name(placement.all_gather(cast, full_shape), WEIGHT)


def dividing_axes(shape: Mapping[str, int], axes: Sequence[str], count: int) -> tuple[str, ...]:
  """The mesh axes over which a number of examples is sharded.

  Args:
    shape: Size of each mesh axis.
    axes: Candidate axes, in order.
    count: Number of examples.

  Returns:
    The longest prefix of axes whose sizes together divide the count.
  """
  sizes = [math.prod(shape[axis] for axis in axes[:n]) for n in range(len(axes) + 1)]
  return tuple(axes[: max(n for n, size in enumerate(sizes) if count % size == 0)])
