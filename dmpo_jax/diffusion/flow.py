"""The noise process of flow matching: data and noise joined by a straight line.

    x_t = (1 - t) x_0 + t eps,   0 <= t <= 1

The time t is the noise level itself, which diffusers calls sigma. Networks predict the velocity.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.diffusion import flow_timesteps, flow_weights
from dmpo_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class FlowProcess:
  """The process of flow matching (rectified flow), whose networks predict eps - x_0.

  Compared and hashed by identity, so that it can be closed over or be a static argument of a jit.

  Attributes:
    shift: The shift s of training times that samplers take by default; None where there is none
      that serves images of every size, see `flow_timesteps.make`.
    num_timesteps: Factor between t and the time input that networks of diffusers are given.

  Raises:
    InputError: A field is out of range.

  Source: arXiv 2210.02747, 2209.03003; arXiv 2403.03206, section 3.
  """

  shift: float | None = 1.0
  num_timesteps: int = 1000

  def __post_init__(self):
    if self.shift is not None and not 0 < self.shift < math.inf:
      raise InputError(f"shift is {self.shift}; expected a number > 0")
    if self.num_timesteps < 1:
      raise InputError(f"num_timesteps is {self.num_timesteps}; expected an integer >= 1")

  def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Noises clean samples to time t.

        x_t = (1 - t) x_0 + t eps

    Args:
      x0: x_0, clean samples, `[B, ...]`.
      noise: eps, standard normal, of x0's shape.
      t: Times in [0, 1], float `[B]` or `[]`. Another time gives NaN.

    Returns:
      x_t, of x0's shape, float32 (or wider, if x0 is).

    Raises:
      InputError: The shapes do not agree, or t is not a float array.
    """
    _same_shape(x0=x0, noise=noise)
    t = _fit(t, x0)
    return (1 - t) * x0 + t * noise

  def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The velocity that the network is trained to predict, dx_t/dt = eps - x_0.

    Args:
      x0: x_0, clean samples, `[B, ...]`.
      noise: eps, standard normal, of x0's shape.
      t: Times in [0, 1], float `[B]` or `[]`; the velocity does not depend on them.

    Returns:
      The velocity, of x0's shape.

    Raises:
      InputError: The shapes do not agree.
    """
    _same_shape(x0=x0, noise=noise)
    return noise - x0

  def snr(self, t: jax.Array) -> jax.Array:
    """The signal-to-noise ratio at time t, SNR_t = ((1 - t) / t)^2.

    Args:
      t: Times in [0, 1], float, any shape. Another time gives NaN.

    Returns:
      SNR_t (a ratio of powers), float32, of t's shape; infinite at t = 0.
    """
    t = checked_times(t)
    return jnp.square((1 - t) / t)

  def to_x0(self, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """The clean sample that a predicted velocity v implies, x_0 = x_t - t v.

    Args:
      prediction: The network's output, `[B, ...]`.
      x_t: The noised samples that the network saw, of prediction's shape.
      t: Times in [0, 1], float `[B]` or `[]`. Another time gives NaN.

    Returns:
      x_0, of x_t's shape, float32 (or wider, if x_t is).

    Raises:
      InputError: The shapes do not agree, or t is not a float array.
    """
    _same_shape(x_t=x_t, prediction=prediction)
    return x_t - _fit(t, x_t) * prediction

  def to_epsilon(self, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """The noise that a predicted velocity v implies, eps = x_t + (1 - t) v.

    Args:
      prediction: The network's output, `[B, ...]`.
      x_t: The noised samples that the network saw, of prediction's shape.
      t: Times in [0, 1], float `[B]` or `[]`. Another time gives NaN.

    Returns:
      eps, of x_t's shape, float32 (or wider, if x_t is).

    Raises:
      InputError: The shapes do not agree, or t is not a float array.
    """
    _same_shape(x_t=x_t, prediction=prediction)
    return x_t + (1 - _fit(t, x_t)) * prediction

  def timestep_sampler(
    self, config: Mapping[str, Any]
  ) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The sampler of training times that a config section names; see `flow_timesteps.make`.

    Args:
      config: `name` and the sampler's fields.

    Returns:
      `(step key, example keys [B]) -> t, float32 [B]`.

    Raises:
      InputError: The name or a field is unknown, missing, or out of range.
    """
    return flow_timesteps.make(config, self.shift)

  def weights(self, config: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array] | None:
    """The weight of an error at each time that a config section names; see `flow_weights.make`.

    Args:
      config: `name` and the weight's fields.

    Returns:
      `t float [B] -> w_t, float32 [B]`; None where every weight is 1.

    Raises:
      InputError: The name or a field is unknown, missing, or out of range.
    """
    return flow_weights.make(config)

  def bins(self, count: int) -> np.ndarray:
    """Edges of `count` equal ranges of time: float32 `[count + 1]`, 0 to 1."""
    return np.linspace(0, 1, count + 1, dtype=np.float32)

  def sample_between(self, key: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """One time, uniform in [low, high); float32 `[]`."""
    return jax.random.uniform(key, (), jnp.float32, low, high)


def checked_times(t: jax.Array) -> jax.Array:
  """Times in float32, NaN where they lie outside of [0, 1].

  Args:
    t: Times, float, any shape.

  Returns:
    float32, of t's shape.

  Raises:
    InputError: t is not a float array: integer timesteps belong to another process.
  """
  t = jnp.asarray(t)
  if not jnp.issubdtype(t.dtype, jnp.floating):
    raise InputError(f"times have dtype {t.dtype}; flow matching expects floats in [0, 1]")
  t = t.astype(jnp.float32)
  # A timestep of 0 to 999 in the place of a time would train on noise alone, without a word.
  return jnp.where((t >= 0) & (t <= 1), t, jnp.nan)


def _fit(t: jax.Array, like: jax.Array) -> jax.Array:
  """Checked times with axes of length 1 appended up to the rank of `like`."""
  shape = jnp.shape(t)
  if shape not in ((), like.shape[:1]):
    raise InputError(
      f"times have shape {shape}, the samples {like.shape}; expected [] or [{like.shape[0]}]"
    )
  return checked_times(t).reshape(shape + (1,) * (like.ndim - len(shape)))


def _same_shape(**arrays: jax.Array) -> None:
  (first, a), (second, b) = arrays.items()
  if a.shape != b.shape:
    raise InputError(f"{first} has shape {a.shape} and {second} {b.shape}; expected the same shape")
