"""Euler's method on the probability flow, and its ancestral variant with fresh noise."""

import numpy as np

from dmpo_jax.diffusion import ddim, sigmas
from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.solver import Solver, Steps, clean_weights


def make(process: DiscreteProcess, num_steps: int, *, karras: bool = False) -> Solver:
  """Euler's method in S steps, on images whose noise is not scaled down: x = x_0 + sigma eps.

      x_{i+1} = x_i + (sigma_{i+1} - sigma_i) (x_i - m_i) / sigma_i

  with m_i the clean image and sigma_S = 0. The network sees x / sqrt(1 + sigma^2).

  Args:
    process: The noise process; "linspace" visits fractional timesteps. It clips nothing.
    num_steps: S, 1 to the process's T.
    karras: Takes Karras' levels between the first and the last one of the spacing; their timesteps
      are fractional.

  Returns:
    The `Solver`; it begins with noise of scale sigma_0 or, for "leading", sqrt(1 + sigma_0^2).

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.

  Source: arXiv 2206.00364, Algorithm 1; diffusers' EulerDiscreteScheduler.
  """
  t, every, scale = levels(process, num_steps, karras=karras)
  every = sigmas.with_end(every)
  steps = _steps(process, t, every, reached=every[1:], noise=np.zeros(num_steps))
  return Solver(steps, initial_scale=scale)


def make_ancestral(process: DiscreteProcess, num_steps: int) -> Solver:
  """Euler's method in S steps, each of which overshoots and puts fresh noise back.

      x_{i+1} = x_i + (down_i - sigma_i) (x_i - m_i) / sigma_i + up_i z_i
      up_i^2  = sigma_{i+1}^2 (sigma_i^2 - sigma_{i+1}^2) / sigma_i^2
      down_i^2 = sigma_{i+1}^2 - up_i^2

  Args:
    process: The noise process; "linspace" visits fractional timesteps. It clips nothing.
    num_steps: S, 1 to the process's T.

  Returns:
    The `Solver`; it begins with noise of scale sigma_0 or, for "leading", sqrt(1 + sigma_0^2).

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.

  Source: diffusers' EulerAncestralDiscreteScheduler.
  """
  t, every, scale = levels(process, num_steps)
  every = sigmas.with_end(every)
  here, there = every[:-1], every[1:]
  # down = sigma_{i+1}^2 / sigma_i, by the two equations above.
  up = there * np.sqrt((1 - there / here) * (1 + there / here))
  steps = _steps(process, t, every, reached=there**2 / here, noise=up)
  return Solver(steps, initial_scale=scale, stochastic=True)


def levels(
  process: DiscreteProcess, num_steps: int, *, karras: bool = False
) -> tuple[np.ndarray, np.ndarray, float]:
  """Timesteps and noise levels of S steps on images x = x_0 + sigma eps.

  Args:
    process: The noise process; "linspace" visits fractional timesteps.
    num_steps: S, 1 to the process's T.
    karras: Takes Karras' levels between the first and the last one of the spacing; their timesteps
      are fractional.

  Returns:
    (timesteps float64 or int32 `[S]`, sigma float64 `[S]`, scale of the noise at the start:
    sigma_0 or, for "leading", sqrt(1 + sigma_0^2)).

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.
  """
  if process.timestep_spacing == "linspace":
    ddim.check_count(process, num_steps)
    t = np.linspace(0, process.num_timesteps - 1, num_steps)[::-1].astype(np.float32)
  else:
    t = ddim.timesteps(process, num_steps)
  every = sigmas.table(process)
  sigma = np.interp(t, np.arange(len(every)), every)
  if karras:
    sigma = sigmas.karras(sigma[0], sigma[-1], num_steps)
    t = sigmas.to_timesteps(sigma, every)
  scale = np.hypot(sigma[0], 1.0) if process.timestep_spacing == "leading" else sigma[0]
  return t, sigma, float(scale)


def _steps(
  process: DiscreteProcess,
  t: np.ndarray,
  every: np.ndarray,
  *,
  reached: np.ndarray,
  noise: np.ndarray,
) -> Steps:
  here = every[:-1]
  signal = 1 / np.sqrt(1 + here**2)
  clean_x, clean_f = clean_weights(process.prediction_type, signal, here * signal)
  kept = reached / here
  return Steps(
    timestep=t.astype(np.float32),
    input_scale=signal,
    clean_x=clean_x * signal,
    clean_f=clean_f,
    on_x=kept,
    on_f=np.zeros_like(here),
    on_clean=1 - kept,
    on_before=np.zeros((len(here), 1)),
    on_noise=noise,
  )
