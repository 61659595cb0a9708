"""Weights and images that are not finite: which they are, and why."""

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dmpo_jax.errors import InputError, short
from dmpo_jax.models import trees

THREADS = 8
CHUNK = 2**20  # elements at a time, to bound the memory of intermediate results


def check_params(params: Mapping[str, Any], stored: Mapping[str, Any], *, dtype: str) -> None:
  """Raises unless all parameters are finite.

  Args:
    params: Parameters by component, in the compute dtype.
    stored: The same as they are stored.
    dtype: Name of the compute dtype, for the message.

  Raises:
    InputError: The message names the first parameter that is not finite, and whether it was stored
      so or exceeds the compute dtype's range.
  """
  names = not_finite(params)
  if not names:
    return
  if damaged := not_finite(stored):
    raise InputError(
      f"the weights hold values that are not finite, in {_listed(damaged)}: their file is damaged, "
      "or their training diverged; sample from other weights"
    )
  raise InputError(
    f"the weights exceed the range of {dtype}, in {_listed(names)}; sample with --dtype bfloat16 "
    "or float32"
  )


def not_finite(params: Mapping[str, Any]) -> list[str]:
  """Names of the parameters that hold NaN or infinity, as component.path."""
  flat = {
    f"{component}.{path}": leaf
    for component, tree in params.items()
    for path, leaf in trees.flatten(tree).items()
  }
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    finite = list(pool.map(_is_finite, flat.values()))
  return [name for name, is_finite in zip(flat, finite, strict=True) if not is_finite]


def check_image(image: np.ndarray, *, prompt: str, seed: int, dtype: str) -> None:
  """Raises unless an image is finite.

  Args:
    image: float `[H, W, C]`.
    prompt: Its prompt, for the message.
    seed: Its seed.
    dtype: Name of the compute dtype.

  Raises:
    InputError: A value is NaN or infinite; the message names prompt, seed and likely cause.
  """
  bad = np.count_nonzero(~np.isfinite(image))
  if not bad:
    return
  cause = (
    "activations exceed the range of float16; sample with --dtype bfloat16 or float32"
    if dtype == "float16"
    else "a prediction grew without bound; check the weights, or lower the guidance"
  )
  raise InputError(
    f"the image of the prompt {short(prompt, 200)}, seed {seed}, has {bad} of {image.size} values "
    f"that are not finite, and is not written: {cause}"
  )


def _listed(names: Sequence[str]) -> str:
  return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _is_finite(leaf: Any) -> bool:
  if isinstance(leaf, jax.Array):
    return bool(jax.numpy.isfinite(leaf).all())
  flat = np.asarray(leaf).reshape(-1)
  return all(
    bool(np.isfinite(flat[start : start + CHUNK]).all()) for start in range(0, flat.size, CHUNK)
  )
