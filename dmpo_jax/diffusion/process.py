"""The interface of a noise process: all that training, evaluation and weighting know of one."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np


class Process(Protocol):
  """Noised samples x_t between data x_0 and noise eps, and the target of a network at x_t.

  A time t is an integer timestep of a discrete process, or a float in [0, 1] of a continuous one.
  `ddpm.DiscreteProcess` is the process of DDPM, `flow.FlowProcess` that of flow matching. Methods
  are pure and may be traced.
  """

  def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Noised samples x_t.

    Args:
      x0: Clean samples, float `[B, ...]`.
      noise: Standard normal, of x0's shape.
      t: Times, `[B]` or `[]`.

    Returns:
      x_t, of x0's shape, float32 (or wider, if x0 is).
    """

  def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The value that a network is trained to predict from x_t.

    Args:
      x0: Clean samples, float `[B, ...]`.
      noise: Standard normal, of x0's shape.
      t: Times, `[B]` or `[]`.

    Returns:
      The target, of x0's shape.
    """

  def snr(self, t: jax.Array) -> jax.Array:
    """Signal-to-noise ratio of x_t, a ratio of powers; float32, of t's shape."""

  def timestep_sampler(
    self, config: Mapping[str, Any]
  ) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The sampler of training times that a config section names.

    Args:
      config: `name` and the sampler's fields.

    Returns:
      `(step key, example keys [B]) -> t [B]`.

    Raises:
      InputError: The name or a field is unknown, missing, or out of range.
    """

  def weights(self, config: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array] | None:
    """The weight of an error at each time that a config section names.

    Args:
      config: `name` and the weight's fields.

    Returns:
      `t [B] -> w_t, float32 [B]`; None where every weight is 1.

    Raises:
      InputError: The name or a field is unknown, missing, or out of range.
    """

  def bins(self, count: int) -> np.ndarray:
    """Edges of `count` equal ranges of time, `[count + 1]`, rising; integers if times are."""

  def sample_between(self, key: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """One time, uniform in [low, high); `[]`, in the dtype of times."""
