"""How a network is spread over devices, said inside the networks and decided outside."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

WEIGHT = "weight"  # the name of a gathered weight to rematerialisation policies


class Placement(NamedTuple):
  """The two places where a network's work is spread; neither changes a number but by rounding.

  Attributes:
    spread: `(params, inputs) -> outputs` of one device -> the same function of arrays that lie on
      all devices. On each, the function is given the parts of parameters that it holds and its
      examples: the first axis of inputs and outputs.
    weights: The part of a parameter that a device holds, already in the dtype of the computation,
      and the shape of the whole -> the whole, where a layer uses it. It is gathered once per use
      and in the narrow dtype; inside a rematerialised block the gather is done again for the
      gradient and nothing of it is kept.
  """

  spread: Callable[[Callable], Callable]
  weights: Callable[[jax.Array, tuple[int, ...]], jax.Array]


_place: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("place", default=None)


@contextlib.contextmanager
def using(place: Placement | None) -> Iterator[None]:
  """Applies a placement's `weights` to what is traced inside; None: parameters are whole."""
  token = _place.set(place)
  try:
    yield
  finally:
    _place.reset(token)


def spread(place: Placement | None, function: Callable[[Any, Any], Any]) -> Callable:
  """`function(params, inputs)` over the devices of a placement; itself without one."""
  return function if place is None else place.spread(function)


def weight(
  parameter: jax.Array,
  dtype: jax.typing.DTypeLike,
  whole: tuple[int, ...],
  factor: float = 1.0,
) -> jax.Array:
  """A parameter as a layer computes with it: cast first, so that a gather moves fewer bytes.

  Args:
    parameter: What this device holds of it.
    dtype: Of the computation.
    whole: Shape of the whole.
    factor: Of the parameter, after the cast: one that is stored in that dtype is computed with as
      one that is cast to it.

  Returns:
    factor times the whole, in that dtype.
  """
  place, cast = _place.get(), parameter.astype(dtype)
  if factor != 1:
    cast = cast * factor
  if place is None:
    return cast
  return jax.ad_checkpoint.checkpoint_name(place.weights(cast, whole), WEIGHT)


def dividing_axes(shape: Mapping[str, int], axes: Sequence[str], count: int) -> tuple[str, ...]:
  """Over which axes of a mesh examples are split.

  Args:
    shape: Size of each axis.
    axes: Those that may be taken, in order.
    count: How many examples there are.

  Returns:
    The axes, from the first on, as long as their sizes together divide the count.
  """
  sizes = [math.prod(shape[axis] for axis in axes[:n]) for n in range(len(axes) + 1)]
  return tuple(axes[: max(n for n, size in enumerate(sizes) if count % size == 0)])
