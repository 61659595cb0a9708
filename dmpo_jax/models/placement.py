"""Where weights and activations lie on a mesh, said inside the networks and decided outside."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

WEIGHT = "weight"  # the name of a placed weight to rematerialisation policies


class Placement(NamedTuple):
  """Constraints on the layout of a network's arrays; neither changes a number.

  Attributes:
    weights: Parameter, already in the dtype of the computation -> the same where a layer uses it.
      Parameters that are sharded are gathered here, once per use and in the narrow dtype; inside a
      rematerialised block the gather is done again for the gradient and nothing of it is kept.
    activations: `[B, ...]` -> the same; applied to inputs and to what each block returns.
  """

  weights: Callable[[jax.Array], jax.Array]
  activations: Callable[[jax.Array], jax.Array]


_place: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("place", default=None)


@contextlib.contextmanager
def using(place: Placement | None) -> Iterator[None]:
  """Applies a placement to what is traced inside; None: arrays lie where the compiler puts them."""
  token = _place.set(place)
  try:
    yield
  finally:
    _place.reset(token)


def weight(parameter: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """A parameter as a layer computes with it: cast first, so that a gather moves fewer bytes."""
  place, cast = _place.get(), parameter.astype(dtype)
  if place is None:
    return cast
  return jax.ad_checkpoint.checkpoint_name(place.weights(cast), WEIGHT)


def activations(x: jax.Array) -> jax.Array:
  """`[B, ...]`, placed."""
  place = _place.get()
  return x if place is None else place.activations(x)
