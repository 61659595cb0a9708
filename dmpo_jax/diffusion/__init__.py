"""Noise processes, timestep samplers, error weights and solver steps: pure array maths."""

from dmpo_jax.diffusion import (
  ddim,
  dpm_solver,
  euler,
  flow_config,
  flow_solvers,
  flow_timesteps,
  flow_weights,
  solver,
  timesteps,
  weights,
)
from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.flow import FlowProcess
from dmpo_jax.diffusion.guidance import guide, guide_edit, has_guidance, rescale
from dmpo_jax.diffusion.process import Process
from dmpo_jax.diffusion.scheduler_config import CLASSES, from_config, make_solver, solver_name
from dmpo_jax.diffusion.solver import Solver, Steps

__all__ = [
  "CLASSES",
  "DiscreteProcess",
  "FlowProcess",
  "Process",
  "Solver",
  "Steps",
  "ddim",
  "dpm_solver",
  "euler",
  "flow_config",
  "flow_solvers",
  "flow_timesteps",
  "flow_weights",
  "from_config",
  "guide",
  "guide_edit",
  "has_guidance",
  "make_solver",
  "rescale",
  "solver",
  "solver_name",
  "timesteps",
  "weights",
]
