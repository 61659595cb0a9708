"""What rounding to the stored dtype costs, measured on the numbers that are stored."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

SUMS = ("count", "values", "errors", "spread")  # sums of squares but for the count


def measure(exact: np.ndarray, stored: np.ndarray, spread: np.ndarray | None = None) -> dict:
  """Sums over an array, to be merged.

  Args:
    exact: float32.
    stored: The same, rounded.
    spread: Variances of what is drawn around `exact`, or None.

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
    "spread": 0.0 if spread is None else float(np.sum(spread, dtype=np.float64)),
  }


def add(first: Mapping[str, dict], second: Mapping[str, dict]) -> dict[str, dict]:
  """The sums over both; each is a dict of what `measure` returns, by name of the array."""
  result = dict(first)
  for name, more in second.items():
    found = result.get(name, dict.fromkeys((*SUMS, "max"), 0.0))
    result[name] = {key: found[key] + more[key] for key in SUMS}
    result[name]["max"] = max(found["max"], more["max"])
  return result


def merge(parts: Sequence[Mapping[str, dict]]) -> dict[str, dict]:
  """The errors over all parts, relative to the values.

      rms = sqrt(Σ(x̂ - x)² / Σx²),   max = max|x̂ - x| / scale,   scale = sqrt(Σx² / n)

  Args:
    parts: Of each part the sums by name of the array.

  Returns:
    Name -> "rms", "max", "scale" and, for what latents are drawn around, "of_spread":
    sqrt(Σ(x̂ - x)² / Σσ²).
  """
  total = {}
  for part in parts:
    total = add(total, part)
  result = {}
  for name, sums in total.items():
    scale = math.sqrt(sums["values"] / sums["count"])
    result[name] = {
      "rms": math.sqrt(sums["errors"] / sums["values"]) if scale else 0.0,
      "max": sums["max"] / scale if scale else 0.0,
      "scale": scale,
    }
    if sums["spread"]:
      result[name]["of_spread"] = math.sqrt(sums["errors"] / sums["spread"])
  return result
