"""The step that all solvers share, driven by a table of constants that is computed once.

Between two evaluations of the network every solver here is linear in the image, the prediction, the
clean images it implies now and implied in the K rows before, and fresh noise. So a solver is a
table of their weights, and one loop serves them all.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.errors import InputError


class Steps(NamedTuple):
  """The constants of the evaluations of a network, one row each, in their order; numpy `[R]`.

      f_i     = network(input_scale_i x_i, timestep_i)
      m_i     = clip(clean_x_i x_i + clean_f_i f_i)         the clean image that f_i implies
      x_{i+1} = on_x_i x_i + on_f_i f_i + on_clean_i m_i + Σ_k on_before_ik m_{i-k} + on_noise_i z_i

  Attributes:
    timestep: The network's time input, int32, or float32 where it may be fractional.
    input_scale: float64, as all that follow.
    clean_x, clean_f: Weights of the clean image. A multistep method that remembers predictions has
      0 and 1 here.
    on_x, on_f, on_clean, on_noise: Weights of the next image.
    on_before: Weights of the K clean images before, the latest first, `[R, K]`; 0 where there are
      none yet.
  """

  timestep: np.ndarray
  input_scale: np.ndarray
  clean_x: np.ndarray
  clean_f: np.ndarray
  on_x: np.ndarray
  on_f: np.ndarray
  on_clean: np.ndarray
  on_before: np.ndarray
  on_noise: np.ndarray


class Solver(NamedTuple):
  """A way from noise to an image in R evaluations of a network.

  Attributes:
    steps: The constants of its steps.
    initial_scale: The factor of the standard normal noise it begins with.
    clip: Bound of the clean images' clipping; infinite where they are not clipped.
    stochastic: Whether its steps add fresh noise.
  """

  steps: Steps
  initial_scale: float
  clip: float = math.inf
  stochastic: bool = False


def step(
  constants: Steps,
  prediction: jax.Array,
  x: jax.Array,
  before: jax.Array,
  noise: jax.Array | None = None,
  *,
  clip: float = math.inf,
) -> tuple[jax.Array, jax.Array]:
  """One step of any solver, by the equations of `Steps`.

  Args:
    constants: One row of a solver's table, a scalar each.
    prediction: f_i, the network's output, `[B, ...]`.
    x: x_i, of prediction's shape.
    before: m_{i-1}, ..., m_{i-K}, `[K, B, ...]`; of no effect in the first rows.
    noise: z_i, standard normal, of x's shape; None where the solver is not stochastic.
    clip: Bound of the clipping of clean images, see `Solver`.

  Returns:
    x_{i+1}, of x's shape, and `before` of the next row, float32 (or wider, if x is).

  Raises:
    InputError: The prediction has another shape than x.
  """
  if prediction.shape != x.shape:
    raise InputError(
      f"x has shape {x.shape} and the prediction {prediction.shape}; expected the same shape"
    )
  at = Steps(*(jnp.asarray(value, jnp.float32) for value in constants))
  clean = at.clean_x * x + at.clean_f * prediction
  if math.isfinite(clip):
    clean = jnp.clip(clean, -clip, clip)
  after = at.on_x * x + at.on_f * prediction + at.on_clean * clean
  for k in range(len(before)):
    after += at.on_before[k] * before[k]
  remembered = jnp.concatenate([clean[None], before[:-1]])
  return (after if noise is None else after + at.on_noise * noise), remembered


def no_images_before(solver: Solver, x: jax.Array) -> jax.Array:
  """The `before` of a solver's first row: zeros `[K, B, ...]` for images x `[B, ...]`."""
  return jnp.zeros((np.shape(solver.steps.on_before)[1], *x.shape), x.dtype)


def clean_weights(
  prediction_type: str, signal: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The weights of x_t = signal x_0 + sigma eps and of the prediction f in x_0 = p x_t + q f.

      epsilon:       x_0 = x_t / signal - (sigma / signal) f
      sample:        x_0 = f
      v_prediction:  x_0 = signal x_t - sigma f

  Args:
    prediction_type: What the network predicts.
    signal: sqrt(abar), float64 `[S]`.
    sigma: sqrt(1 - abar), float64 `[S]`.

  Returns:
    p and q, float64 `[S]` each.
  """
  if prediction_type == "epsilon":
    return 1 / signal, -sigma / signal
  if prediction_type == "v_prediction":
    return signal, -sigma
  return np.zeros_like(signal), np.ones_like(signal)
