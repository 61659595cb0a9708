"""Noise processes as the drift needs them: x_t = a_t x_0 + s_t eps, and its score."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.diffusion import DiscreteProcess, FlowProcess
from dmpo_jax.errors import InputError

# The level below which the signal of a schedule with zero terminal SNR counts as this much: the
# drift is divided by it once and multiplied by it once.
SMALLEST_SIGNAL = 1e-4


@dataclasses.dataclass(frozen=True)
class OrnsteinUhlenbeck:
  """The Ornstein-Uhlenbeck process dX = -X dt + sqrt(2) dB, in continuous time t > 0.

      x_t = exp(-t) x_0 + sqrt(1 - exp(-2t)) eps

  Networks predict eps, -s_t times the score.

  """

  prediction_type: str = "epsilon"

  def levels(self, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a_t and s_t with axes of length 1 up to the rank of `like`; t float `[B]` or `[]`."""
    t = _fit(jnp.asarray(t, jnp.result_type(like, jnp.float32)), like)
    return jnp.exp(-t), jnp.sqrt(-jnp.expm1(-2 * t))

  def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t, of x0's shape."""
    a, s = self.levels(t, x0)
    return a * x0 + s * noise

  def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The noise."""
    return noise


def levels(process: Any, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The scales a_t of the signal and s_t of the noise in x_t = a_t x_0 + s_t eps.

  A discrete process also has levels at times between its own, where the ratio s_t/a_t is
  interpolated linearly, as the solvers of diffusers do.

  Args:
    process: `DiscreteProcess` (integer or float timesteps), `FlowProcess`, `OrnsteinUhlenbeck`, or
      a process with a method `levels(t, like)`.
    t: Times, `[B]` or `[]`.
    like: An array `[B, ...]` whose rank the levels get.

  Returns:
    a_t and s_t, float `[B, 1, ...]` or `[1, ...]`.

  Raises:
    InputError: The process has no known score: it does not say its levels.
  """
  t = jnp.asarray(t)
  if isinstance(process, DiscreteProcess):
    if jnp.issubdtype(t.dtype, jnp.integer):
      a, s = process.levels(t, like)
    else:
      # 0 at zero terminal SNR.
      abar = np.maximum(process.alphas_cumprod, SMALLEST_SIGNAL**2)
      table = jnp.asarray(np.sqrt((1 - abar) / abar), t.dtype)
      ratio = jnp.interp(_fit(t, like), jnp.arange(len(abar), dtype=t.dtype), table)
      a = 1 / jnp.sqrt(1 + ratio**2)
      s = ratio * a
    return jnp.maximum(a, SMALLEST_SIGNAL), s
  if isinstance(process, FlowProcess):
    sigma = _fit(t, like)
    return jnp.maximum(1 - sigma, SMALLEST_SIGNAL), sigma
  if not callable(getattr(process, "levels", None)):
    raise InputError(
      f"{type(process).__name__} has no known score: the drift needs the scales of signal and "
      "noise. Give the process a method levels(t, like) -> (a_t, s_t)"
    )
  return process.levels(t, like)


def clean_and_noise(
  process: Any, prediction: jax.Array, x: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """x_0 and eps that a network's prediction implies at x = x_t; the score is -eps/s_t.

  Args:
    process: See `levels`; `prediction_type` says what its networks predict, for `FlowProcess` it
      is the velocity eps - x_0.
    prediction: `[B, ...]`.
    x: x_t, of the same shape.
    t: Times, `[B]` or `[]`.

  Returns:
    x_0 and eps, of x's shape.

  Raises:
    InputError: The process has no known score.
  """
  a, s = levels(process, t, x)
  kind = "velocity" if isinstance(process, FlowProcess) else process.prediction_type
  if kind == "epsilon":
    return (x - s * prediction) / a, prediction
  if kind == "sample":
    return prediction, (x - a * prediction) / s
  if kind == "v_prediction":
    return a * x - s * prediction, a * prediction + s * x
  return x - s * prediction, x + a * prediction


def shifted(
  process: Any, prediction: jax.Array, drift: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
  """The prediction of a network whose score is larger by a drift.

      eps' = eps - s_t u,   x_0' = x_0 + (s_t²/a_t) u

  Every prediction is linear in x_0 and eps, so that its change is the target of these changes.

  Args:
    process: See `levels`.
    prediction: The network's, `[B, ...]`.
    drift: u, of the same shape.
    x: x_t, of the same shape.
    t: Times, `[B]` or `[]`.

  Returns:
    The prediction that belongs to the score plus u, of the same shape.
  """
  a, s = levels(process, t, x)
  kind = "velocity" if isinstance(process, FlowProcess) else process.prediction_type
  if kind == "epsilon":
    return prediction - s * drift
  if kind == "sample":
    return prediction + s**2 / a * drift
  return prediction - s / a * drift  # velocities of both kinds: a² + s² = 1, and a + s = 1


def reverse_times(process: Any, t: jax.Array, count: int) -> jax.Array:
  """Times of a simulation backward from t, t (1 - j/n)²; x_0 is predicted at the last.

  Timesteps of a discrete process are rounded to integers, in t's dtype.

  Args:
    process: See `levels`.
    t: Times, `[B]`.
    count: n.

  Returns:
    `[n, B]`, of t's dtype.
  """
  part = jnp.square(1 - jnp.arange(count, dtype=jnp.float32) / count).reshape(-1, 1)
  times = t[None] * part
  if isinstance(process, DiscreteProcess):
    return jnp.concatenate([t[None], jnp.round(times[1:]).astype(t.dtype)])
  return times.astype(t.dtype)


def _fit(t: jax.Array, like: jax.Array) -> jax.Array:
  """Times with axes of length 1 up to the rank of `like`."""
  shape = jnp.shape(t)
  if shape not in ((), like.shape[:1]):
    raise InputError(
      f"times have shape {shape}, the samples {like.shape}; expected [] or [{like.shape[0]}]"
    )
  return t.reshape(shape + (1,) * (like.ndim - len(shape)))
