"""How much the velocity errors of each noise level of flow matching count."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.common import choose
from dmpo_jax.common.ranges import check_number
from dmpo_jax.diffusion.weights import GAMMAS

# t float [B] -> w_t, float32 [B]
Weights = Callable[[jax.Array], jax.Array]


def make(config: Mapping[str, Any]) -> Weights | None:
  """The weights that a config names.

      {"name": "none"}, {"name": "velocity"}  w_t = 1
      {"name": "epsilon"}                     w_t = (1 - t)^2, the error of the noise
      {"name": "x0"}                          w_t = t^2, the error of the clean image
      {"name": "min_snr", "gamma": 5.0}       w_t = min((1 - t)^2, gamma t^2)

  With eps' = x_t + (1 - t) v' and x_0' = x_t - t v' as a predicted velocity v' implies them,
  ||eps' - eps||^2 = (1 - t)^2 ||v' - v||^2 and ||x_0' - x_0||^2 = t^2 ||v' - v||^2: "epsilon" and
  "x0" are the errors of a network that predicts the noise, or the clean image. "min_snr" weights
  the error of x_0 by min(SNR_t, gamma).

  Args:
    config: The name and its fields.

  Returns:
    t -> w_t: float `[B]` in [0, 1] to float32 `[B]`; None where every weight is 1.

  Raises:
    InputError: The name or a field is unknown, missing, or out of range.
  """
  make_weights, fields = choose.select("timestep weight", config, _WEIGHTS)
  return make_weights(**fields)


def _none() -> None:
  return None


def _epsilon() -> Weights:
  return lambda t: jnp.square(1 - t.astype(jnp.float32))


def _x0() -> Weights:
  return lambda t: jnp.square(t.astype(jnp.float32))


def _min_snr(*, gamma: float) -> Weights:
  gamma = check_number("gamma of timestep weight 'min_snr'", gamma, GAMMAS)
  epsilon, x0 = _epsilon(), _x0()
  return lambda t: jnp.minimum(epsilon(t), gamma * x0(t))


_WEIGHTS = {
  "none": _none,
  "velocity": _none,
  "epsilon": _epsilon,
  "x0": _x0,
  "min_snr": _min_snr,
}
