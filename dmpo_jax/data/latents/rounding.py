"""Errors of rounding to the stored dtype."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

SUMS = ("count", "values", "errors", "variances")  # values and errors are sums of squares


def measure(exact: np.ndarray, stored: np.ndarray, variances: np.ndarray | None = None) -> dict:
  """Sums over an array, for `merge`.

  Args:
    exact: Array, float32.
    stored: The same array, rounded.
    variances: Variances of the distribution whose mean `exact` is, or None.

  Returns:
    Floats by name.
  """
  exact = exact.astype(np.float64)
  error = stored.astype(np.float64) - exact
  return {
    "count": float(exact.size),
    "values": float(np.sum(exact**2)),
    "errors": float(np.sum(error**2)),
    "max": float(np.abs(error).max(initial=0.0)),
    "variances": 0.0 if variances is None else float(np.sum(variances, dtype=np.float64)),
  }


def add(first: Mapping[str, dict], second: Mapping[str, dict]) -> dict[str, dict]:
  """The sums over two groups of arrays; each maps an array's name to the result of `measure`."""
  result = dict(first)
  for name, more in second.items():
    sums = result.get(name, dict.fromkeys((*SUMS, "max"), 0.0))
    result[name] = {key: sums[key] + more[key] for key in SUMS}
    result[name]["max"] = max(sums["max"], more["max"])
  return result


def merge(shards: Sequence[Mapping[str, dict]]) -> dict[str, dict]:
  """The errors over all shards, relative to the values.

      rms = sqrt(Σ(x̂ - x)² / Σx²),   max = max|x̂ - x| / scale,   scale = sqrt(Σx² / n)

  Args:
    shards: Sums of each shard by name of the array.

  Returns:
    Name -> "rms", "max", "scale" and, for arrays with variances σ², "of_spread":
    sqrt(Σ(x̂ - x)² / Σσ²).
  """
  total = {}
  for shard in shards:
    total = add(total, shard)
  result = {}
  for name, sums in total.items():
    scale = math.sqrt(sums["values"] / sums["count"])
    result[name] = {
      "rms": math.sqrt(sums["errors"] / sums["values"]) if scale else 0.0,
      "max": sums["max"] / scale if scale else 0.0,
      "scale": scale,
    }
    if sums["variances"]:
      result[name]["of_spread"] = math.sqrt(sums["errors"] / sums["variances"])
  return result
