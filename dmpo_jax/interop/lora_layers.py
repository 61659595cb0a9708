"""From the entries of a LoRA file to the factors of a pipeline's layers."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import lora_entries, lora_names, state_dict
from dmpo_jax.models import trees

Place = tuple[str, str]  # (component, layer)


class Factors(NamedTuple):
  """The factors of a layer in our layout, and the alpha of its entries.

  Attributes:
    down: [I, r] or [k, k, I, r].
    up: [r, O].
    alpha: A number, or None where the file has no such entry.
  """

  down: np.ndarray
  up: np.ndarray
  alpha: float | None


def read_layers(
  state: Mapping[str, np.ndarray], base: Mapping[str, trees.Tree]
) -> tuple[dict[Place, Factors], list[str]]:
  """The factors of the layers that a LoRA file adapts.

  Args:
    state: Entry -> array, of any spelling.
    base: Component -> tree of the network it is for, arrays or abstract.

  Returns:
    (component, layer) -> factors that fit the base, and a line for each entry or layer that does
    not.
  """
  entries, problems = _grouped(state, lora_names.readable_names(base))
  kernels = {
    (component, layer): trees.flatten(tree)[f"{layer}.kernel"].shape
    for component, tree in base.items()
    for layer in lora_names.layers(tree)
  }
  found: dict[Place, Factors] = {}
  component, ambiguity = _component(entries, kernels)
  for places, (spelled, arrays) in entries.items():
    if len(places) > 1 and component is None:
      continue
    place = places[0] if len(places) == 1 else next(p for p in places if p[0] == component)
    try:
      if place in found:
        raise InputError("the file has this layer twice")
      found[place] = _factors(arrays, kernels[place])
    except InputError as error:
      problems.append(f"{spelled}: {error}")
  return found, problems + ambiguity


def _grouped(
  state: Mapping[str, np.ndarray], names: Mapping[str, list[Place]]
) -> tuple[dict[tuple[Place, ...], tuple[str, dict[str, np.ndarray]]], list[str]]:
  """Places of a layer -> its name and arrays by role, and a line for each entry without a place."""
  entries: dict[tuple[Place, ...], tuple[str, dict[str, np.ndarray]]] = {}
  problems = []
  foreign: dict[str, list[str]] = collections.defaultdict(list)
  for name, array in state.items():
    entry = lora_entries.parse(name)
    places = entry and _places(entry.layer, names)
    if entry is None:
      foreign[lora_entries.method_of(name)].append(name)
    elif not places:
      foreign["the base has no such linear layer or convolution"].append(name)
    else:
      _, arrays = entries.setdefault(tuple(places), (".".join(places[0]), {}))
      if entry.role not in arrays:
        arrays[entry.role] = array
      elif not _same(arrays[entry.role], array):
        problems.append(f"{name}: the file has this factor twice, with other values")
  for reason, listed in foreign.items():
    shown = listed if len(listed) <= 4 else listed[:3]
    problems += [f"{name}: {reason}" for name in shown]
    if len(listed) > len(shown):
      problems.append(f"... and {len(listed) - len(shown)} more: {reason}")
  return entries, problems


def _places(layer: str, names: Mapping[str, list[Place]]) -> list[Place]:
  """The places that a layer's name can mean."""
  first, dot, rest = layer.partition(".")
  if dot and first in lora_names.COMPONENTS:
    return names.get(f"{first}.{lora_entries.unwrapped(rest)}", [])
  return names.get(lora_entries.unwrapped(layer), [])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _component(
  entries: Mapping[tuple[Place, ...], tuple[str, dict[str, np.ndarray]]],
  kernels: Mapping[Place, tuple[int, ...]],
) -> tuple[str | None, list[str]]:
  """The component of names that several have, by their names and shapes; a line if it is unclear.

  peft's files of one network name no component, and the text encoders of SDXL have equal layers.
  """
  unclear = [places for places in entries if len(places) > 1]
  if not unclear:
    return None, []
  components = set.intersection(*({component for component, _ in places} for places in unclear))
  fitting = {c for c in components if all(_fits(entries[p][1], p, c, kernels) for p in unclear)}
  if len(fitting) == 1:
    return fitting.pop(), []
  return None, [
    f"{unclear[0][0][1]}: the file does not say which network it is for, "
    f"{' or '.join(sorted(components))}; put the name of one and a dot before its entries"
  ]


def _fits(
  arrays: Mapping[str, np.ndarray],
  places: tuple[Place, ...],
  component: str,
  kernels: Mapping[Place, tuple[int, ...]],
) -> bool:
  place = next(place for place in places if place[0] == component)
  try:
    _factors(arrays, kernels[place])
  except InputError:
    return False
  return True


def _factors(arrays: Mapping[str, np.ndarray], kernel: tuple[int, ...]) -> Factors:
  """Torch's factors, [r, I(, k, k)] and [O, r(, 1, 1)], in our layout.

  Factors of a convolution of width 1 fit a linear layer, and the reverse: the numbers are the same.
  """
  down, up = arrays.get("down"), arrays.get("up")
  if down is None or up is None:
    raise InputError("needs both factors, down (lora_A) and up (lora_B)")
  fits = down.ndim in (2, 4) and up.ndim in (2, 4) and up.shape[1] == down.shape[0] > 0
  if not fits or up.shape[2:] != (1,) * (up.ndim - 2):
    raise InputError(
      f"factors {short(list(down.shape))} and {short(list(up.shape))}; expected [r, I] and [O, r], "
      "or [r, I, k, k] and [O, r, 1, 1]"
    )
  for array in (down, up):
    if str(array.dtype) not in state_dict.FLOATS:
      raise InputError(f"is {array.dtype}; expected {' or '.join(state_dict.FLOATS)}")
    if not np.isfinite(array).all():
      raise InputError("has values that are not finite")
  down = down.transpose(*range(2, down.ndim), 1, 0)
  if len(kernel) == 2 and down.shape[:-2] == (1, 1):
    down = down[0, 0]
  elif len(kernel) == 4 and down.ndim == 2:
    down = down[None, None]
  shape = (*down.shape[:-1], up.shape[0])
  if shape != kernel:
    raise InputError(f"made for {short(list(shape))}, the base's is {list(kernel)}")
  return Factors(
    np.ascontiguousarray(down),
    np.ascontiguousarray(up.reshape(up.shape[:2]).T),
    _number(arrays.get("alpha")),
  )


def _number(array: Any) -> float | None:
  """The number of an alpha entry, of any dtype."""
  if array is None:
    return None
  if array.size != 1:
    raise InputError(f"alpha has {array.size} values, expected one")
  value = float(np.asarray(array).reshape(-1)[0])
  if not abs(value) < 1e9:
    raise InputError(f"alpha is {value}, expected a number")
  return value
