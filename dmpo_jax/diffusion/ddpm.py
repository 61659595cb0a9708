"""The noise process of a diffusion model, and the conversions between what a network may predict.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    abar_t = prod_{s <= t} (1 - beta_s)

The tables are computed in float64 and rounded to float32 once, where they are used; diffusers
accumulates them in float32, so the two differ by float32 rounding (up to 3e-5 on x_t at the
cleanest levels, where 1 - abar loses most digits).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.diffusion import timesteps, weights
from dmpo_jax.diffusion.table import lookup
from dmpo_jax.errors import InputError, unknown

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteProcess:
  """A discrete noise schedule with T levels, and how its sampler walks them.

  Compared and hashed by identity, so that it can be closed over or be a static argument of a jit.

  Attributes:
    alphas_cumprod: abar, float64 `[T]`, strictly decreasing in t, in [0, 1). Read-only.
    prediction_type: What the network predicts: "epsilon", "sample" (x_0) or "v_prediction".
    timestep_spacing: How a sampler picks its steps: "leading", "trailing" or "linspace".
    steps_offset: Added to the steps of "leading".
    final_alpha_cumprod: abar behind the last step of a sampler (1.0: no noise is left).
    clip_sample: Whether a sampler clips the predicted x_0.
    clip_sample_range: The bound of that clipping, in units of x_0.

  Raises:
    InputError: A field cannot be used; among others epsilon prediction with abar = 0 (zero terminal
      SNR), where x_0 cannot be recovered from epsilon.
  """

  alphas_cumprod: np.ndarray
  prediction_type: str = "epsilon"
  timestep_spacing: str = "leading"
  steps_offset: int = 0
  final_alpha_cumprod: float = 1.0
  clip_sample: bool = False
  clip_sample_range: float = 1.0

  def __post_init__(self):
    if self.prediction_type not in PREDICTION_TYPES:
      raise unknown("prediction_type", self.prediction_type, PREDICTION_TYPES)
    if self.timestep_spacing not in TIMESTEP_SPACINGS:
      raise unknown("timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
    abar = np.array(self.alphas_cumprod, np.float64)
    if abar.ndim != 1 or abar.size == 0:
      raise InputError(f"alphas_cumprod has shape {abar.shape}; expected [T] with T >= 1")
    if not (
      np.all(abar >= 0) and np.all(abar.astype(np.float32) < 1) and np.all(np.diff(abar) < 0)
    ):
      raise InputError(
        f"alphas_cumprod must lie in [0, 1) and fall strictly with t; it goes from {abar[0]:g} to "
        f"{abar[-1]:g} (smallest {abar.min():g}): check the betas, each must lie in (0, 1]"
      )
    if abar[-1] == 0 and self.prediction_type == "epsilon":
      raise InputError(
        "prediction_type 'epsilon' with zero terminal SNR: at the last timestep x_t is pure noise "
        "and x_0 cannot be recovered from a prediction of that noise; use 'v_prediction' or "
        "'sample', or set rescale_betas_zero_snr to false"
      )
    if not 0 < self.final_alpha_cumprod <= 1:
      raise InputError(f"final_alpha_cumprod is {self.final_alpha_cumprod}; expected in (0, 1]")
    if self.steps_offset < 0:
      raise InputError(f"steps_offset is {self.steps_offset}; expected an integer >= 0")
    if not 0 < self.clip_sample_range < math.inf:
      raise InputError(f"clip_sample_range is {self.clip_sample_range}; expected a number > 0")
    abar.setflags(write=False)
    object.__setattr__(self, "alphas_cumprod", abar)

  @property
  def num_timesteps(self) -> int:
    """T, the number of noise levels."""
    return self.alphas_cumprod.shape[0]

  def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Noises clean samples to level t.

        x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps

    Args:
      x0: x_0, clean samples, `[B, ...]`.
      noise: eps, standard normal, of x0's shape.
      t: Timesteps in [0, T), integer `[B]` or `[]`. A level outside of the schedule gives NaN.

    Returns:
      x_t, of x0's shape, float32 (or wider, if x0 is).

    Raises:
      InputError: The shapes do not agree, or t is not an integer array.
    """
    _same_shape(x0=x0, noise=noise)
    signal, sigma = self.levels(t, x0)
    return signal * x0 + sigma * noise

  def velocity(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The velocity at level t.

        v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0

    Args:
      x0: x_0, clean samples, `[B, ...]`.
      noise: eps, standard normal, of x0's shape.
      t: Timesteps in [0, T), integer `[B]` or `[]`; outside of it the result is NaN.

    Returns:
      v_t, of x0's shape, float32 (or wider, if x0 is).

    Raises:
      InputError: The shapes do not agree, or t is not an integer array.

    Source: Salimans and Ho, arXiv 2202.00512, appendix D.
    """
    _same_shape(x0=x0, noise=noise)
    signal, sigma = self.levels(t, x0)
    return signal * noise - sigma * x0

  def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The value that the network is trained to predict: eps, x_0 or v_t, by `prediction_type`.

    Args:
      x0: x_0, clean samples, `[B, ...]`.
      noise: eps, standard normal, of x0's shape.
      t: Timesteps in [0, T), integer `[B]` or `[]`.

    Returns:
      `noise`, `x0` or `velocity`; of x0's shape.

    Raises:
      InputError: The shapes do not agree, or t is not an integer array.
    """
    if self.prediction_type == "v_prediction":
      return self.velocity(x0, noise, t)
    _same_shape(x0=x0, noise=noise)
    return noise if self.prediction_type == "epsilon" else x0

  def snr(self, t: jax.Array) -> jax.Array:
    """The signal-to-noise ratio at level t, SNR_t = abar_t / (1 - abar_t).

    Args:
      t: Timesteps in [0, T), integer, any shape. A level outside of the schedule gives NaN.

    Returns:
      SNR_t (a ratio of powers), float32, of t's shape.
    """
    abar = self.alphas_cumprod
    return lookup(abar / (1 - abar), t)

  def to_x0(self, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """The clean sample that a network's prediction implies.

        epsilon:       x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
        sample:        x_0 = prediction
        v_prediction:  x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v

    Args:
      prediction: The network's output, `[B, ...]`.
      x_t: The noised samples the network saw, of prediction's shape.
      t: Timesteps in [0, T), integer `[B]` or `[]`. A level outside of the schedule gives NaN.

    Returns:
      x_0, of x_t's shape, float32 (or wider, if x_t is).

    Raises:
      InputError: The shapes do not agree, or t is not an integer array.
    """
    _same_shape(x_t=x_t, prediction=prediction)
    signal, sigma = self.levels(t, x_t)
    if self.prediction_type == "epsilon":
      return (x_t - sigma * prediction) / signal
    if self.prediction_type == "v_prediction":
      return signal * x_t - sigma * prediction
    return prediction.astype(jnp.promote_types(prediction.dtype, signal.dtype))

  def to_epsilon(self, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """The noise that a network's prediction implies.

        epsilon:       eps = prediction
        sample:        eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)
        v_prediction:  eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t

    Args:
      prediction: The network's output, `[B, ...]`.
      x_t: The noised samples that the network saw, of prediction's shape.
      t: Timesteps in [0, T), integer `[B]` or `[]`; outside of it the result is NaN.

    Returns:
      eps, of x_t's shape, float32 (or wider, if x_t is).

    Raises:
      InputError: The shapes do not agree, or t is not an integer array.
    """
    _same_shape(x_t=x_t, prediction=prediction)
    signal, sigma = self.levels(t, x_t)
    if self.prediction_type == "sample":
      return (x_t - signal * prediction) / sigma
    if self.prediction_type == "v_prediction":
      return signal * prediction + sigma * x_t
    return prediction.astype(jnp.promote_types(prediction.dtype, signal.dtype))

  def levels(self, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scales of signal and noise at level t, sqrt(abar_t) and sqrt(1 - abar_t).

    Args:
      t: Timesteps in [0, T), integer `[B]` or `[]`.
      like: An array `[B, ...]` that the scales are to multiply.

    Returns:
      The two scales, float32, with axes of length 1 appended up to the rank of `like`.

    Raises:
      InputError: t is not an integer array, or has neither no axis nor one of the batch's length.
    """
    shape = jnp.shape(t)
    if shape not in ((), like.shape[:1]):
      raise InputError(
        f"timesteps have shape {shape}, the samples {like.shape}; expected [] or [{like.shape[0]}]"
      )
    abar = self.alphas_cumprod
    fit = shape + (1,) * (like.ndim - len(shape))
    return (
      lookup(np.sqrt(abar), t).reshape(fit),
      lookup(np.sqrt(1 - abar), t).reshape(fit),
    )

  def timestep_sampler(
    self, config: Mapping[str, Any]
  ) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The sampler of training timesteps that a config section names; see `timesteps.make`.

    Args:
      config: `name` and the sampler's fields.

    Returns:
      `(step key, example keys [B]) -> t, int32 [B]`.

    Raises:
      InputError: The name or a field is unknown, missing, or out of range.
    """
    return timesteps.make(config, self.num_timesteps)

  def weights(self, config: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array] | None:
    """The weight of an error at each timestep that a config section names; see `weights.make`.

    Args:
      config: `name` and the weight's fields.

    Returns:
      `t int32 [B] -> w_t, float32 [B]`; None where every weight is 1.

    Raises:
      InputError: The name or a field is unknown, missing, or out of range.
    """
    return weights.make(config, self.alphas_cumprod, self.prediction_type)

  def bins(self, count: int) -> np.ndarray:
    """Edges of `count` ranges of timesteps, equal to within one: int32 `[count + 1]`, 0 to T."""
    return np.asarray([self.num_timesteps * i // count for i in range(count + 1)], np.int32)

  def sample_between(self, key: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """One timestep, uniform among the integers low <= t < high; int32 `[]`."""
    return jax.random.randint(key, (), low, high)


def _same_shape(**arrays: jax.Array) -> None:
  (first, a), (second, b) = arrays.items()
  if a.shape != b.shape:
    raise InputError(f"{first} has shape {a.shape} and {second} {b.shape}; expected the same shape")
