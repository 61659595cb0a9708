"""Solvers of flow matching: Euler, its stochastic form, Heun, and DPM-Solver++(2M).

Each takes the noise levels sigma_0 > ... > sigma_{S-1} > 0 of its steps and ends at sigma_S = 0.
With the network's velocity v_i the clean image is m_i = x_i - sigma_i v_i.
"""

import numpy as np

from dmpo_jax.diffusion import sigmas
from dmpo_jax.diffusion.solver import Solver, Steps


def euler(levels: np.ndarray) -> Solver:
  """Euler's method: x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v_i.

  Args:
    levels: sigma_i, float64 `[S]`, falling, in (0, 1].

  Returns:
    The `Solver`.

  Raises:
    InputError: The levels do not fall.

  Source: diffusers' FlowMatchEulerDiscreteScheduler.
  """
  here, there = _ends(levels)
  one, zero = np.ones_like(here), np.zeros_like(here)
  steps = Steps(
    timestep=here.astype(np.float32),
    input_scale=one,
    clean_x=one,
    clean_f=-here,
    on_x=one,
    on_f=there - here,
    on_clean=zero,
    on_before=zero[:, None],
    on_noise=zero,
  )
  return Solver(steps, initial_scale=1.0)


def stochastic(levels: np.ndarray) -> Solver:
  """Clean images noised again: x_{i+1} = (1 - sigma_{i+1}) m_i + sigma_{i+1} z_i.

  Args:
    levels: sigma_i, float64 `[S]`, falling, in (0, 1].

  Returns:
    The `Solver`.

  Raises:
    InputError: The levels do not fall.

  Source: diffusers' FlowMatchEulerDiscreteScheduler with stochastic_sampling.
  """
  here, there = _ends(levels)
  zero = np.zeros_like(here)
  steps = euler(levels).steps._replace(on_x=zero, on_f=zero, on_clean=1 - there, on_noise=there)
  return Solver(steps, initial_scale=1.0, stochastic=True)


def heun(levels: np.ndarray) -> Solver:
  """Heun's method: two evaluations a step, but one in the last, 2 S - 1 in all.

      x'      = x_i + (sigma_{i+1} - sigma_i) v(x_i, sigma_i)
      x_{i+1} = x_i + (sigma_{i+1} - sigma_i) (v(x_i, sigma_i) + v(x', sigma_{i+1})) / 2

  The table's "clean image" is the velocity itself here: the second evaluation looks back at it.

  Args:
    levels: sigma_i, float64 `[S]`, falling, in (0, 1].

  Returns:
    The `Solver`, with 2 S - 1 rows.

  Raises:
    InputError: The levels do not fall.

  Source: diffusers' FlowMatchHeunDiscreteScheduler.
  """
  here, there = _ends(levels)
  # Rows: step 0, its correction, step 1, its correction, ..., step S - 1.
  moved = there - here  # [S]
  rows = 2 * len(here) - 1
  zero = np.zeros(rows)
  correction = np.arange(rows) % 2 == 1
  change = np.repeat(moved, 2)[:rows]
  steps = Steps(
    timestep=np.where(correction, np.repeat(there, 2)[:rows], np.repeat(here, 2)[:rows]).astype(
      np.float32
    ),
    input_scale=np.ones(rows),
    clean_x=zero,
    clean_f=np.ones(rows),
    on_x=np.ones(rows),
    on_f=np.where(correction, change / 2, change),
    on_clean=zero,
    on_before=np.where(correction, -change / 2, 0.0)[:, None],
    on_noise=zero,
  )
  return Solver(steps, initial_scale=1.0)


def dpm_solver_pp_2m(levels: np.ndarray, *, num_timesteps: int) -> Solver:
  """DPM-Solver++ of second order (multistep, midpoint).

      x_{i+1} = s' / s x_i + a' (1 - exp(-h_i)) (m_i + h_i / (2 h_{i-1}) (m_i - m_{i-1}))

  with the scales a = 1 - sigma of the signal and s = sigma of the noise, primed where they belong
  to step i + 1, and h_i = log(a' s / (a s')). The first step and the last are of first order.

  Args:
    levels: sigma_i, float64 `[S]`, falling, in (0, 1).
    num_timesteps: T: the network sees sigma rounded down to a multiple of 1 / T, as in diffusers.

  Returns:
    The `Solver`.

  Raises:
    InputError: The levels do not fall.

  Source: arXiv 2211.01095, Algorithm 2; diffusers' DPMSolverMultistepScheduler with
    use_flow_sigmas and prediction_type "flow_prediction".
  """
  here, there = _ends(levels)
  ratio, ratio_there = here / (1 - here), there / (1 - there)
  h = np.log(ratio[:-1] / ratio_there[:-1])  # [S - 1]
  look_back = np.zeros_like(here)
  look_back[1:-1] = h[1:] / (2 * h[:-1])
  moved = (1 - there) * (1 - ratio_there / ratio)
  zero = np.zeros_like(here)
  steps = euler(levels).steps._replace(
    timestep=(np.floor(here * num_timesteps) / num_timesteps).astype(np.float32),
    on_x=there / here,
    on_f=zero,
    on_clean=moved * (1 + look_back),
    on_before=(-moved * look_back)[:, None],
  )
  return Solver(steps, initial_scale=1.0)


def _ends(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Noise levels before and after each step, float64 `[S]` each."""
  levels = sigmas.with_end(np.asarray(levels, np.float64))
  return levels[:-1], levels[1:]
