"""DPM-Solver++(2M): second order from one evaluation a step, by looking back one step."""

import numpy as np

from dmpo_jax.diffusion import ddim, sigmas
from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.solver import Solver, Steps, clean_weights


def timesteps(process: DiscreteProcess, num_steps: int) -> np.ndarray:
  """The S timesteps of the spacing, noisiest first.

      leading:   t_i = (S - i) floor(T / (S + 1)) + steps_offset
      trailing:  t_i = round(T - i T / S) - 1
      linspace:  t_i = round((T - 1) (S - i) / S)

  Args:
    process: The noise process, which names the spacing.
    num_steps: S, 1 to T.

  Returns:
    int32 `[S]`.

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.

  Source: diffusers' DPMSolverMultistepScheduler.
  """
  if process.timestep_spacing == "trailing":
    return ddim.timesteps(process, num_steps)
  ddim.check_count(process, num_steps)
  total = process.num_timesteps
  if process.timestep_spacing == "leading":
    steps = np.arange(num_steps, 0, -1) * (total // (num_steps + 1)) + process.steps_offset
  else:
    steps = np.round(np.linspace(0, total - 1, num_steps + 1))[::-1][:-1]
  ddim.check_first(process, num_steps, steps[0])
  return steps.astype(np.int32)


def make(
  process: DiscreteProcess, num_steps: int, *, karras: bool = False, round_timesteps: bool = True
) -> Solver:
  """DPM-Solver++ of second order (multistep, midpoint) in S steps.

      x_{i+1} = (s' / s) x_i + a' (1 - exp(-h_i)) (m_i + h_i / (2 h_{i-1}) (m_i - m_{i-1}))

  with the scales a = 1 / sqrt(1 + sigma^2) of the signal and s = a sigma of the noise, primed where
  they belong to step i + 1, and h_i = log(sigma_i / sigma_{i+1}). The first step and the last,
  whose h is infinite, are of first order: they leave the difference away.

  Args:
    process: The noise process. It clips nothing.
    num_steps: S, 1 to the process's T.
    karras: Takes Karras' levels between the process's noisiest and cleanest one.
    round_timesteps: Whether the timesteps of Karras' levels are rounded to the nearest integer, or
      down (as diffusers does for cosine betas alone).

  Returns:
    The `Solver`; it begins with the noise as it is.

  Raises:
    InputError: S lies outside of [1, T] or is so large that two steps fall on one level, or the
      offset pushes the first timestep past T - 1.

  Source: arXiv 2211.01095, Algorithm 2; diffusers' DPMSolverMultistepScheduler.
  """
  every = sigmas.table(process)
  if karras:
    ddim.check_count(process, num_steps)
    levels = sigmas.karras(every[-1], every[0], num_steps)
    t = sigmas.to_timesteps(levels, every)
    t = (np.round(t) if round_timesteps else np.floor(t)).astype(np.int32)
  else:
    t = timesteps(process, num_steps)
    levels = every[t]
  levels = sigmas.with_end(levels)
  here, there = levels[:-1], levels[1:]
  signal, signal_there = 1 / np.sqrt(1 + here**2), 1 / np.sqrt(1 + there**2)
  # Of the last step, which is of first order, h is infinite and not needed.
  h = np.log(here[:-1] / there[:-1])  # [S - 1]
  look_back = np.zeros(num_steps)
  look_back[1:-1] = h[1:] / (2 * h[:-1])
  moved = signal_there * (1 - there / here)
  clean_x, clean_f = clean_weights(process.prediction_type, signal, here * signal)
  steps = Steps(
    timestep=t,
    input_scale=np.ones(num_steps),
    clean_x=clean_x,
    clean_f=clean_f,
    on_x=(there * signal_there) / (here * signal),
    on_f=np.zeros(num_steps),
    on_clean=moved * (1 + look_back),
    on_before=(-moved * look_back)[:, None],
    on_noise=np.zeros(num_steps),
  )
  return Solver(steps, initial_scale=1.0)
