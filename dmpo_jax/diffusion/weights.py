"""How much the errors of each noise level count."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dmpo_jax.common import choose
from dmpo_jax.common.ranges import Interval, check_number
from dmpo_jax.diffusion.table import lookup
from dmpo_jax.errors import InputError

# γ of min-SNR; published: 5.
GAMMAS = Interval(1e-6, 1e6, closed_low=True, closed_high=True)


def min_snr(alphas_cumprod: np.ndarray, prediction_type: str, gamma: float) -> list[float]:
  """The min-SNR weight of each timestep, in the units of the process's own target.

      w_t = min(SNR_t, γ)/SNR_t (epsilon),   min(SNR_t, γ)/(SNR_t + 1) (velocity),
      w_t = min(SNR_t, γ) (x_0)

  All three weight the error of x_0 by min(SNR_t, γ).

  Args:
    alphas_cumprod: abar, `[T]`; SNR_t = abar_t / (1 - abar_t).
    prediction_type: What the network predicts.
    gamma: γ > 0; published: 5.

  Returns:
    T floats.

  Source: arXiv 2303.09556, section 3.4.
  """

  def weight(abar: float) -> float:
    snr = abar / (1 - abar)
    if prediction_type == "epsilon":
      return min(1.0, gamma / snr) if snr else 1.0
    capped = min(snr, gamma)
    return capped / (snr + 1) if prediction_type == "v_prediction" else capped

  return [weight(abar) for abar in alphas_cumprod.tolist()]


def make(
  config: Mapping[str, Any], alphas_cumprod: np.ndarray, prediction_type: str
) -> Callable[[jax.Array], jax.Array] | None:
  """The weights that a config names.

      {"name": "none"}                       every error counts once
      {"name": "min_snr", "gamma": 5.0}      see `min_snr`
      {"name": "table", "values": [...]}     a weight for each of the T timesteps

  Args:
    config: The name and its fields.
    alphas_cumprod: abar of the noise process, `[T]`.
    prediction_type: What the network predicts.

  Returns:
    t -> w_t: int32 `[B]` to float32 `[B]`; None for "none".

  Raises:
    InputError: The name or a field is unknown, a field is missing, or a weight is not a finite
      number >= 0.
  """
  make_table, fields = choose.select("timestep weight", config, _TABLES)
  values = make_table(alphas_cumprod, prediction_type, **fields)
  if values is None:
    return None
  table = np.asarray(values, np.float64)
  with np.errstate(over="ignore"):
    rounded = table.astype(np.float32)
  if not (np.isfinite(rounded).all() and rounded.max() >= np.finfo(np.float32).tiny):
    raise InputError(
      f"timestep weights of {config['name']!r} lie from {table.min():g} to {table.max():g}, which "
      "float32 does not hold; choose others"
    )
  return lambda t: lookup(table, t)


def _none(alphas_cumprod: np.ndarray, prediction_type: str) -> None:
  return None


def _min_snr(alphas_cumprod: np.ndarray, prediction_type: str, *, gamma: float) -> list[float]:
  gamma = check_number("gamma of timestep weight 'min_snr'", gamma, GAMMAS)
  return min_snr(alphas_cumprod, prediction_type, gamma)


def _table(
  alphas_cumprod: np.ndarray, prediction_type: str, *, values: Sequence[float]
) -> tuple[float, ...]:
  values, count = tuple(values), len(alphas_cumprod)
  if len(values) != count or not all(_weight(value) for value in values) or not any(values):
    raise InputError(
      f"values of timestep weight 'table' must be {count} finite numbers of at least 0, one per "
      f"timestep and not all 0; got {len(values)}: {values[:8]}"
    )
  return values


_TABLES = {"none": _none, "min_snr": _min_snr, "table": _table}


def _weight(value: object) -> bool:
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return number and math.isfinite(value) and value >= 0
