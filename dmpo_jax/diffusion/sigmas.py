"""Noise levels as solvers of the probability flow count them: sigma = sqrt((1 - abar) / abar)."""

import numpy as np

from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.errors import InputError

# What stands in the place of a zero abar, where sigma would be infinite (diffusers' choice).
SMALLEST_ABAR = 2.0**-24


def table(process: DiscreteProcess) -> np.ndarray:
  """sigma_t of every timestep, float64 `[T]`, rising; at zero terminal SNR the last is 4096."""
  abar = np.maximum(process.alphas_cumprod, SMALLEST_ABAR)
  return np.sqrt((1 - abar) / abar)  # [T]


def karras(high: float, low: float, num_steps: int) -> np.ndarray:
  """S noise levels, close to each other where they are small.

      sigma_i = (high^(1/7) + i / (S - 1) (low^(1/7) - high^(1/7)))^7

  Args:
    high: The first level.
    low: The last level.
    num_steps: S; of one step the level is `high`.

  Returns:
    float64 `[S]`, falling.

  Source: arXiv 2206.00364, Eq. 5 with rho = 7.
  """
  return np.linspace(high ** (1 / 7), low ** (1 / 7), num_steps) ** 7


def to_timesteps(levels: np.ndarray, every: np.ndarray) -> np.ndarray:
  """The fractional timesteps at which log sigma, linear between timesteps, takes the given values.

  Args:
    levels: sigma, `[S]`.
    every: `table` of the process, `[T]`.

  Returns:
    float64 `[S]`, in [0, T - 1].
  """
  return np.interp(np.log(levels), np.log(every), np.arange(len(every)))


def with_end(levels: np.ndarray) -> np.ndarray:
  """The levels of S steps and the 0 they lead to.

  Args:
    levels: sigma at each step, `[S]`.

  Returns:
    float64 `[S + 1]`.

  Raises:
    InputError: A level is not below the one before it.
  """
  levels = np.append(levels, 0.0)
  if not np.all(np.diff(levels) < 0):
    raise InputError(
      f"num_steps is {len(levels) - 1}, so many that two steps fall on one noise level: take fewer"
    )
  return levels
