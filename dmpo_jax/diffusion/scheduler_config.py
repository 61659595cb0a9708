"""Which solver a diffusers `scheduler_config.json` asks for, and with which settings."""

from collections.abc import Mapping
from typing import Any

from dmpo_jax.diffusion import ddim, dpm_solver, euler
from dmpo_jax.diffusion.ddpm import from_config
from dmpo_jax.diffusion.solver import Solver
from dmpo_jax.errors import InputError, unknown

CLASSES = {
  "ddim": "DDIMScheduler",
  "euler": "EulerDiscreteScheduler",
  "euler_ancestral": "EulerAncestralDiscreteScheduler",
  "dpm_solver_pp_2m": "DPMSolverMultistepScheduler",
}

# Fields that change what a class does, in ways that are not offered, with the values that leave it
# alone. Fields of other classes have no effect there, as in diffusers.
_OFFERED: dict[str, dict[str, tuple[Any, ...]]] = {
  "ddim": {},
  "euler": {
    "interpolation_type": ("linear",),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero",),
  },
  "euler_ancestral": {},
  "dpm_solver_pp_2m": {
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "use_lu_lambdas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (float("-inf"),),
  },
}


def solver_name(config: Mapping[str, Any]) -> str:
  """The name of the solver that a scheduler's config asks for by its class.

  Args:
    config: The fields of `scheduler_config.json`; one that names no class means DDIM.

  Returns:
    A key of `CLASSES`.

  Raises:
    InputError: The class has no counterpart here (PNDM and DDPM among others).
  """
  wanted = config.get("_class_name", "DDIMScheduler")
  for name, offered in CLASSES.items():
    if offered == wanted:
      return name
  raise InputError(
    f"the pipeline's scheduler is {wanted}, which is not offered as a solver; name one of "
    f"{', '.join(CLASSES)} (its noise schedule is kept: that is what "
    f"{CLASSES['dpm_solver_pp_2m']}.from_config(pipeline.scheduler.config) does in diffusers)"
  )


def make_solver(
  config: Mapping[str, Any],
  num_steps: int,
  *,
  name: str | None = None,
  karras: bool | None = None,
  eta: float = 0.0,
) -> Solver:
  """The solver that a scheduler's config describes, or another one on the same noise schedule.

  Another solver reads the fields of the file that its class in diffusers has; a field that is left
  out has that class's default, as with `Class.from_config(pipeline.scheduler.config)`.

  Args:
    config: The fields of `scheduler_config.json`.
    num_steps: S, the number of network evaluations.
    name: A key of `CLASSES`; by default the one that the file's class says.
    karras: Whether Karras' levels are used; by default as the file's `use_karras_sigmas` says.
      Of effect in euler and dpm_solver_pp_2m alone.
    eta: Of ddim: 0 is deterministic, 1 ancestral.

  Returns:
    The `Solver`.

  Raises:
    InputError: The name is not known, an argument has no meaning for this solver, or a field has a
      value that is not offered; the message names it.
  """
  name = solver_name(config) if name is None else name
  if name not in CLASSES:
    raise unknown("solver", name, CLASSES)
  for field, allowed in _OFFERED[name].items():
    if config.get(field, allowed[0]) not in allowed:
      raise InputError(
        f"scheduler field {field} is {config[field]!r}, which solver {name!r} does not offer; "
        f"expected {' or '.join(map(repr, allowed))}"
      )
  schedule = from_config({**config, "_class_name": CLASSES[name]})
  if eta and name != "ddim":
    raise InputError(f"eta is {eta}, which solver {name!r} does not have; only 'ddim' does")
  if name in ("ddim", "euler_ancestral"):
    if karras:
      raise InputError(
        f"Karras sigmas are asked for, which solver {name!r} does not have; only 'euler' and "
        "'dpm_solver_pp_2m' do"
      )
    if name == "ddim":
      return ddim.make(schedule, num_steps, eta=eta)
    return euler.make_ancestral(schedule, num_steps)
  karras = bool(config.get("use_karras_sigmas")) if karras is None else karras
  if name == "euler":
    return euler.make(schedule, num_steps, karras=karras)
  cosine = config.get("beta_schedule") == "squaredcos_cap_v2"
  return dpm_solver.make(schedule, num_steps, karras=karras, round_timesteps=not cosine)
