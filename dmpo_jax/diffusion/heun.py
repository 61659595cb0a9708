"""Heun's method on the probability flow: two evaluations a step, but one in the last."""

import math

import numpy as np

from dmpo_jax.diffusion import euler, sigmas
from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.solver import Solver, Steps, clean_weights
from dmpo_jax.errors import InputError


def make(process: DiscreteProcess, num_steps: int, *, karras: bool = False) -> Solver:
  """Heun's method in S steps, 2 S - 1 evaluations, on images x = x_0 + sigma eps.

      x'      = x_i + (sigma_{i+1} - sigma_i) d_i,   d_i = (x_i - m_i) / sigma_i
      x_{i+1} = x_i + (sigma_{i+1} - sigma_i) (d_i + d') / 2,   d' = (x' - m') / sigma_{i+1}

  with m the clean image and sigma_S = 0, which the last step reaches by Euler's method.

  Args:
    process: The noise process; "linspace" visits fractional timesteps.
    num_steps: S, 1 to the process's T.
    karras: Takes Karras' levels between the first and the last one of the spacing; their timesteps
      are fractional.

  Returns:
    The `Solver`; it begins with noise of scale sigma_0 or, for "leading", sqrt(1 + sigma_0^2).

  Raises:
    InputError: S lies outside of [1, T], the offset pushes the first timestep past T - 1, or the
      network predicts clean samples.

  Source: arXiv 2206.00364, Algorithm 1; diffusers' HeunDiscreteScheduler.
  """
  if process.prediction_type not in ("epsilon", "v_prediction"):
    raise InputError(
      f"solver 'heun' is for networks that predict noise or v, not {process.prediction_type!r}; "
      "name another solver"
    )
  t, levels, scale = euler.levels(process, num_steps, karras=karras)
  levels = sigmas.with_end(levels)
  # Rows: step 0, its correction, step 1, its correction, ..., step S - 1.
  rows = np.arange(2 * num_steps - 1)
  step, correction = rows // 2, rows % 2 == 1
  here, there = levels[step], levels[step + 1]
  seen = np.where(correction, there, here)  # the level at which the network is evaluated
  signal = 1 / np.sqrt(1 + seen**2)
  clean_x, clean_f = clean_weights(process.prediction_type, signal, seen * signal)
  kept = there / here
  # A correction finds x_i from x' = kept x_i + (1 - kept) m_i. The last step has none.
  back = np.divide(1, kept, out=np.zeros_like(kept), where=correction)
  late = np.divide(there - here, 2 * there, out=np.zeros_like(kept), where=correction)
  early = (kept - 1) / 2  # (sigma_{i+1} - sigma_i) / (2 sigma_i)
  steps = Steps(
    timestep=t[step + correction].astype(np.float32),
    input_scale=signal,
    clean_x=clean_x * signal,
    clean_f=clean_f,
    on_x=np.where(correction, (1 + early) * back + late, kept),
    on_f=np.zeros_like(here),
    on_clean=np.where(correction, -late, 1 - kept),
    on_before=np.where(correction, -(1 + early) * back * (1 - kept) - early, 0.0)[:, None],
    on_noise=np.zeros_like(here),
  )
  clip = process.clip_sample_range if process.clip_sample else math.inf
  return Solver(steps, initial_scale=scale, clip=clip)
