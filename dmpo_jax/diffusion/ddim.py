"""DDIM: which timesteps it visits, and the constants of its steps."""

import math

import numpy as np

from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.solver import Solver, Steps, clean_weights
from dmpo_jax.errors import InputError


def timesteps(process: DiscreteProcess, num_steps: int) -> np.ndarray:
  """The S timesteps that a sampler visits, noisiest first.

      leading:   t_i = (S - 1 - i) floor(T / S) + steps_offset
      trailing:  t_i = round(T - i T / S) - 1
      linspace:  t_i = round((T - 1) (S - 1 - i) / (S - 1))

  Only "trailing" and "linspace" begin at the noisiest level T - 1, as zero terminal SNR needs.

  Args:
    process: The noise process, which names the spacing.
    num_steps: S, the number of network evaluations, 1 to T.

  Returns:
    int32 `[S]`.

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.

  Source: diffusers' DDIMScheduler; arXiv 2305.08891, Table 2.
  """
  total = process.num_timesteps
  check_count(process, num_steps)
  if process.timestep_spacing == "leading":
    steps = np.arange(num_steps)[::-1] * (total // num_steps) + process.steps_offset
  elif process.timestep_spacing == "trailing":
    # By arange, as diffusers does, so that its rounding of halves is met; where its own rounding
    # adds a last step at timestep -1, that step is left away.
    steps = np.round(np.arange(total, 0, -total / num_steps))[:num_steps] - 1
  else:
    steps = np.round(np.linspace(0, total - 1, num_steps))[::-1]
  check_first(process, num_steps, steps[0])
  return steps.astype(np.int32)


def previous(process: DiscreteProcess, num_steps: int) -> np.ndarray:
  """The level each of the S steps leads to: t - floor(T / S), negative behind the last step.

  This is diffusers' rule, kept so that an exported model samples alike there. It is the next
  timestep exactly for "leading", to within one for "trailing"; with "linspace" it lies a little
  above the next timestep.

  Args:
    process: The noise process, which names the spacing.
    num_steps: S, the number of network evaluations, 1 to T.

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.

  Returns:
    int32 `[S]`.
  """
  return timesteps(process, num_steps) - np.int32(process.num_timesteps // num_steps)


def make(process: DiscreteProcess, num_steps: int, *, eta: float = 0.0) -> Solver:
  """DDIM in S steps.

      x_prev  = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - s^2) eps + s noise
      s^2     = eta^2 (1 - abar_prev) / (1 - abar_t) (1 - abar_t / abar_prev)

  with x_0 and eps as the prediction implies them, x_0 clipped if the process says so (eps is not
  recomputed from the clipped x_0, as in diffusers). abar_prev is the process's
  `final_alpha_cumprod` behind the last step. eta = 0 is deterministic, eta = 1 ancestral.

  Args:
    process: The noise process, with spacing and clipping.
    num_steps: S, 1 to the process's T.
    eta: In [0, 1].

  Returns:
    The `Solver`; it begins with the noise as it is.

  Raises:
    InputError: eta lies outside of [0, 1], S lies outside of [1, T], or the offset pushes the
      first timestep past T - 1.

  Source: arXiv 2010.02502, Eq. 12 and 16.
  """
  if not 0 <= eta <= 1:
    raise InputError(f"eta is {eta}; expected 0 (deterministic) to 1 (ancestral)")
  t = timesteps(process, num_steps)
  # abar, with what lies behind the last step put before timestep 0.
  table = np.concatenate([[process.final_alpha_cumprod], process.alphas_cumprod])
  here = table[t + 1]
  there = table[np.maximum(previous(process, num_steps), -1) + 1]
  signal, sigma = np.sqrt(here), np.sqrt(1 - here)
  variance = eta**2 * (1 - there) / (1 - here) * (1 - here / there)
  # At eta = 1 from abar_t = 0 no direction is left: rounding must not make its square negative.
  direction = np.sqrt(np.maximum(1 - there - variance, 0))
  noise_x, noise_f = _noise_weights(process.prediction_type, signal, sigma)
  clean_x, clean_f = clean_weights(process.prediction_type, signal, sigma)
  steps = Steps(
    timestep=t,
    input_scale=np.ones(num_steps),
    clean_x=clean_x,
    clean_f=clean_f,
    on_x=direction * noise_x,
    on_f=direction * noise_f,
    on_clean=np.sqrt(there),
    on_before=np.zeros((num_steps, 1)),
    on_noise=np.sqrt(np.maximum(variance, 0)),
  )
  clip = process.clip_sample_range if process.clip_sample else math.inf
  return Solver(steps, initial_scale=1.0, clip=clip, stochastic=eta > 0)


def check_count(process: DiscreteProcess, num_steps: int) -> None:
  """Raises InputError where S lies outside of [1, T]."""
  total = process.num_timesteps
  if not 1 <= num_steps <= total:
    raise InputError(f"num_steps is {num_steps}; expected 1 to {total}, the process's timesteps")


def check_first(process: DiscreteProcess, num_steps: int, first: float) -> None:
  """Raises InputError where the first timestep lies past T - 1."""
  if first >= process.num_timesteps:
    raise InputError(
      f"num_steps {num_steps} with steps_offset {process.steps_offset} begins at timestep "
      f"{first:.0f}, but the process ends at {process.num_timesteps - 1}: take fewer steps"
    )


def _noise_weights(
  prediction_type: str, signal: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The weights of x_t and of the prediction in eps; float64 `[S]` each."""
  if prediction_type == "sample":
    return 1 / sigma, -signal / sigma
  if prediction_type == "v_prediction":
    return sigma, signal
  return np.zeros_like(sigma), np.ones_like(sigma)
