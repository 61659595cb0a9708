"""Noise schedules, targets, timestep samplers and solver steps: pure array maths."""

from dmpo_jax.diffusion import ddim, dpm_solver, euler, solver, timesteps, weights
from dmpo_jax.diffusion.ddpm import (
  Schedule,
  add_noise,
  from_config,
  snr,
  target,
  to_epsilon,
  to_x0,
  velocity,
)
from dmpo_jax.diffusion.guidance import guide, rescale
from dmpo_jax.diffusion.scheduler_config import CLASSES, make_solver, solver_name
from dmpo_jax.diffusion.solver import Solver

__all__ = [
  "CLASSES",
  "Schedule",
  "Solver",
  "add_noise",
  "ddim",
  "dpm_solver",
  "euler",
  "from_config",
  "guide",
  "make_solver",
  "rescale",
  "snr",
  "solver",
  "solver_name",
  "target",
  "timesteps",
  "to_epsilon",
  "to_x0",
  "velocity",
  "weights",
]
