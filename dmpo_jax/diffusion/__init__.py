"""Noise schedules, targets, timestep samplers and solver steps: pure array maths."""

from dmpo_jax.diffusion import ddim, timesteps
from dmpo_jax.diffusion.guidance import guide
from dmpo_jax.diffusion.schedule import (
  Schedule,
  add_noise,
  from_config,
  snr,
  target,
  to_epsilon,
  to_x0,
  velocity,
)

__all__ = [
  "Schedule",
  "add_noise",
  "ddim",
  "from_config",
  "guide",
  "snr",
  "target",
  "timesteps",
  "to_epsilon",
  "to_x0",
  "velocity",
]
