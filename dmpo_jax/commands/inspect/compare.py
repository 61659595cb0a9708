"""Differences of two sources, tensor by tensor."""

import filecmp
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmpo_jax.commands.inspect.sources import Component, Source
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError
from dmpo_jax.interop import state_dict

TEXT_PREFIX = "text_model."

# Fields that say who wrote a config, not what it configures.
PROVENANCE = ("_diffusers_version", "_name_or_path", "transformers_version", "_class_name")

# In order of increasing difference.
KINDS = ("identical", "rounded", "different")

CHUNK = 2**20  # entries

Json = dict[str, Any]


def compare(source: Source, other: Source) -> Json:
  """Differences of a source from another.

  Args:
    source: The first source.
    other: The second one. Two single components are compared whatever their names.

  Returns:
    JSON values: components that only one source has, and the differences of each common one.

  Raises:
    InputError: The sources have no component in common.
  """
  ours, theirs = source.components, other.components
  if len(ours) == 1 and len(theirs) == 1:
    theirs = dict(zip(ours, theirs.values(), strict=True))
  elif len(ours) == 1 and not set(ours) & set(theirs):
    ours = _renamed(ours, theirs, source)
  elif len(theirs) == 1 and not set(ours) & set(theirs):
    theirs = _renamed(theirs, ours, other)
  return {
    "only_here": [name for name in ours if name not in theirs],
    "only_there": [name for name in theirs if name not in ours],
    "components": {
      name: differences(component, theirs[name])
      for name, component in ours.items()
      if name in theirs
    },
  }


def _renamed(
  single: Mapping[str, Component], whole: Mapping[str, Component], source: Source
) -> dict[str, Component]:
  """The single component, under the name of the component with the same entries."""
  (component,) = single.values()
  entries = {_aligned(name) for name in component.tensors}
  for name, candidate in whole.items():
    if entries and entries & {_aligned(entry) for entry in candidate.tensors}:
      return {name: component}
  raise InputError(
    f"{source.path} matches none of the components {', '.join(whole)}; compare like with like"
  )


def differences(component: Component, other: Component) -> Json:
  """Differences of a component from another; values are read one pair of tensors at a time.

  Args:
    component: The first component.
    other: The second one.

  Returns:
    JSON values: `config` (field -> [here, there], where both have a config; an absent field is
    null), `files` (other file -> difference), and for components with weights the values of
    `_tensors`.
  """
  here, there = component.config, other.config
  fields = [*here, *(field for field in there if field not in here)] if here and there else []
  result: Json = {
    "config": {
      field: [here.get(field), there.get(field)]
      for field in fields
      if field not in PROVENANCE and here.get(field) != there.get(field)
    },
    "files": {
      name: difference
      for name in sorted(component.others.keys() | other.others.keys())
      if (difference := _file_difference(component.others.get(name), other.others.get(name)))
    },
  }
  if component.kind != other.kind and component.kind and other.kind:
    result["config"]["class"] = [component.kind, other.kind]
  if component.tensors or other.tensors:
    result |= _tensors(component.tensors, other.tensors)
  return result


def _file_difference(here: paths.Path | None, there: paths.Path | None) -> str:
  if here is None or there is None:
    return "only there" if here is None else "only here"
  return "" if filecmp.cmp(here, there, shallow=False) else "differs"


def _aligned(name: str) -> str:
  """Name without the prefix that transformers 5 leaves out for some classes."""
  return name.removeprefix(TEXT_PREFIX)


def _tensors(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
  """Differences of two sets of tensors.

  Returns:
    only_here, only_there, shape_differs, not_finite: names. identical, rounded, different: numbers
    of tensors; rounded ones differ only by the rounding to the narrower dtype. relative:
    |a - b| / |b| over all tensors in the Euclidean norm; largest_relative: the largest of one
    tensor, largest_absolute: of one entry, each with the tensor's name. modules: [name, relative,
    largest absolute] of the different tensors, the most changed first.
  """
  here = {_aligned(name): tensor for name, tensor in ours.items()}
  there = {_aligned(name): tensor for name, tensor in theirs.items()}
  counts = dict.fromkeys(KINDS, 0)
  shape_differs, not_finite, different = [], [], []
  changed: dict[str, tuple[float, float, float]] = {}
  squares = np.zeros(2)
  for name, tensor in here.items():
    if name not in there:
      continue
    if tuple(tensor.shape) != tuple(there[name].shape):
      shape_differs.append(f"{name}: {list(tensor.shape)} here, {list(there[name].shape)} there")
      continue
    a, b = (_readable(t, name) for t in (tensor, there[name]))
    kind, finite, largest, delta, norm = _measure(a, b)
    counts[kind] += 1
    squares += (delta, norm)
    if not finite:
      not_finite.append(name)
    if kind != "identical":
      changed[name] = (largest, delta, norm)
    if kind == "different":
      different.append(name)
  result: Json = {
    "only_here": [name for name in here if name not in there],
    "only_there": [name for name in there if name not in here],
    "shape_differs": shape_differs,
    **counts,
    "not_finite": not_finite,
  }
  if changed:
    most = max(changed, key=lambda name: changed[name][0])
    furthest = max(changed, key=lambda name: _ratio(*changed[name][1:]))
    result |= {
      "relative": _ratio(*squares.tolist()),
      "largest_absolute": [changed[most][0], most],
      "largest_relative": [_ratio(*changed[furthest][1:]), furthest],
      "modules": _modules({name: changed[name] for name in different}),
    }
  return result


def _modules(changed: Mapping[str, tuple[float, float, float]]) -> list[list[Any]]:
  """[module, relative, largest absolute], the most changed first."""
  sums: dict[str, list[float]] = {}
  for name, (largest, delta, norm) in changed.items():
    module = sums.setdefault(name.rpartition(".")[0], [0.0, 0.0, 0.0])
    module[:] = [max(module[0], largest), module[1] + delta, module[2] + norm]
  rows = [[name, _ratio(delta, norm), largest] for name, (largest, delta, norm) in sums.items()]
  return sorted(rows, key=lambda row: -row[1])


def _ratio(delta: float, norm: float) -> float:
  """Square root of a ratio of sums of squares."""
  if not delta:
    return 0.0
  return math.sqrt(delta / norm) if norm else math.inf


def _readable(tensor: Any, name: str) -> np.ndarray:
  try:
    return tensor.read(None)
  except TypeError as error:  # safetensors, for dtypes that numpy does not have
    raise InputError(
      f"{name} is {tensor.dtype}, which NumPy lacks and cannot be compared"
    ) from error


def _measure(a: np.ndarray, b: np.ndarray) -> tuple[str, bool, float, float, float]:
  """Difference of two arrays of one shape, computed in chunks to bound the memory of float64.

  Returns:
    One of `KINDS`; whether all entries of both are finite; and over the finite ones
    max |a - b|, sum (a - b)² and sum b².
  """
  a, b = a.reshape(-1), b.reshape(-1)
  kind, finite = 0, True
  largest = delta = norm = 0.0
  for start in range(0, a.size, CHUNK):
    x, y = a[start : start + CHUNK], b[start : start + CHUNK]
    kind = max(kind, chunk_kind := _kind(x, y))
    x, y = x.astype(np.float64), y.astype(np.float64)
    both_finite = np.isfinite(x) & np.isfinite(y)
    if not both_finite.all():
      finite, x, y = False, x[both_finite], y[both_finite]
    norm += float(np.vdot(y, y))
    if chunk_kind:
      x -= y
      largest = max(largest, float(np.abs(x).max(initial=0.0)))
      delta += float(np.vdot(x, x))
  return KINDS[kind], finite, largest, delta, norm


def _kind(a: np.ndarray, b: np.ndarray) -> int:
  """Index in `KINDS`: identical, one rounded to the dtype of the other, or different."""
  if a.dtype == b.dtype:
    same = np.array_equal(a.view(np.uint8), b.view(np.uint8))
    return KINDS.index("identical" if same else "different")
  if not {str(a.dtype), str(b.dtype)} <= set(state_dict.FLOATS):
    return KINDS.index("identical" if np.array_equal(a, b) else "different")
  wide, narrow = (a, b) if a.dtype.itemsize > b.dtype.itemsize else (b, a)
  narrowed = narrow.astype(np.float32)
  if np.array_equal(wide.astype(np.float32), narrowed, equal_nan=True):
    return KINDS.index("identical")
  if wide.dtype.itemsize == narrow.dtype.itemsize:
    return KINDS.index("different")
  with np.errstate(over="ignore"):
    rounded = wide.astype(narrow.dtype).astype(np.float32)
  return KINDS.index(
    "rounded" if np.array_equal(rounded, narrowed, equal_nan=True) else "different"
  )
