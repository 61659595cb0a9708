"""Noise process and solver that a diffusers `scheduler_config.json` describes."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmpo_jax.common.idle import is_off, tell
from dmpo_jax.diffusion import ddim, dpm_solver, euler, heun, pndm
from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.solver import Solver
from dmpo_jax.errors import InputError, short, unknown

# Largest values that are believed: tables have a row for each timestep.
MAX_TIMESTEPS, MAX_NUMBER = 100_000, 1e6

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

CLASSES = {
  "ddim": "DDIMScheduler",
  "euler": "EulerDiscreteScheduler",
  "euler_ancestral": "EulerAncestralDiscreteScheduler",
  "dpm_solver_pp_2m": "DPMSolverMultistepScheduler",
  "heun": "HeunDiscreteScheduler",
  "pndm": "PNDMScheduler",
}
# Solvers that may take Karras' levels.
_KARRAS = ("euler", "dpm_solver_pp_2m", "heun")

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
  "heun": {"use_exponential_sigmas": (False, None), "use_beta_sigmas": (False, None)},
  "pndm": {"skip_prk_steps": (False, True)},
}


# What diffusers takes for a field that a file leaves out, where it differs by the class that the
# file names; for a field the class does not have, what that class's own sampler does.
_BY_SIGMA = {"timestep_spacing": "linspace"}
_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_DEFAULTS: dict[str, dict[str, Any]] = {
  "DDIMScheduler": {"clip_sample": True},
  "DDPMScheduler": {"clip_sample": True},
  "PNDMScheduler": {"set_alpha_to_one": False},
  "EulerDiscreteScheduler": _BY_SIGMA,
  "EulerAncestralDiscreteScheduler": _BY_SIGMA,
  "DPMSolverMultistepScheduler": _BY_SIGMA,
  "DPMSolverSinglestepScheduler": _BY_SIGMA,
  "DEISMultistepScheduler": _BY_SIGMA,
  "UniPCMultistepScheduler": _BY_SIGMA,
  "LMSDiscreteScheduler": _BY_SIGMA,
  "HeunDiscreteScheduler": {**_BY_SIGMA, **_LATENT_BETAS},
  "KDPM2DiscreteScheduler": {**_BY_SIGMA, **_LATENT_BETAS},
  "KDPM2AncestralDiscreteScheduler": {**_BY_SIGMA, **_LATENT_BETAS},
  "DPMSolverSDEScheduler": {**_BY_SIGMA, **_LATENT_BETAS},
  "SASolverScheduler": _BY_SIGMA,
  "LCMScheduler": {**_LATENT_BETAS, "beta_schedule": "scaled_linear"},
  "TCDScheduler": {**_LATENT_BETAS, "beta_schedule": "scaled_linear"},
  "DDIMParallelScheduler": {"clip_sample": True},
  "DDPMParallelScheduler": {"clip_sample": True},
}
_FIELDS: dict[str, Any] = {
  "num_train_timesteps": 1000,
  "beta_start": 0.0001,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "trained_betas": None,
  "rescale_betas_zero_snr": False,
  "prediction_type": "epsilon",
  "timestep_spacing": "leading",
  "steps_offset": 0,
  "set_alpha_to_one": True,
  "clip_sample": False,
  "clip_sample_range": 1.0,
}

# Fields that would change the noise process or the sampler in ways that are not offered, with the
# values that leave them alone.
_REFUSED: dict[str, tuple[Any, ...]] = {
  "thresholding": (False, None),
  "predict_epsilon": (True, None),
  "use_flow_sigmas": (False, None),
  "use_dynamic_shifting": (False, None),
  "shift_terminal": (None,),
  "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}

# Fields that only steer other solvers, or have no effect while those above are off.
_OTHER_SOLVERS = frozenset(
  {
    "_class_name",
    "_diffusers_version",
    "_use_default_values",
    "args",
    "corrector_order",
    "dynamic_thresholding_ratio",
    "noise_sampler_seed",
    "original_inference_steps",
    "predictor_order",
    "sample_max_value",
    "skip_prk_steps",
    "tau_func",
    "tensor_format",
    "timestep_scaling",
    "timestep_values",
    "interpolation_type",
    "timestep_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "sigma_min",
    "sigma_max",
    "final_sigmas_type",
    "solver_order",
    "algorithm_type",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
    "use_lu_lambdas",
    "lambda_min_clipped",
    "predict_x0",
    "disable_corrector",
    "solver_p",
    "flow_shift",
    "time_shift_type",
  }
)


def from_config(config: Mapping[str, Any]) -> DiscreteProcess:
  """The noise process that a diffusers `scheduler_config.json` describes.

      linear:             beta_t = linspace(beta_start, beta_end, T)
      scaled_linear:      beta_t = linspace(sqrt(beta_start), sqrt(beta_end), T)^2
      squaredcos_cap_v2:  beta_t = min(1 - f((t + 1) / T) / f(t / T), 0.999),
                          f(u) = cos^2(pi/2 (u + 0.008) / 1.008)
      trained_betas:      beta_t as given

  With `rescale_betas_zero_snr`, sqrt(abar) is shifted and scaled so that its last value is 0 and
  its first is kept. Whatever solver a file names, the noise process of training is the same: files
  of DDIM, DDPM, PNDM, Euler, Heun, LMS, DPM-Solver, DEIS, UniPC, SA-Solver, KDPM2, LCM and TCD are
  read, fields that only steer another solver have no effect, and a field that is left out has the
  default of the class that is named (DDIM where none is; clip_sample is false where that class has
  no such field). Unknown fields that are off are listed in a warning. Some of those solvers put
  2^-24 in the place of a zero abar; here it is 0, as in training.

  Args:
    config: The file's fields.

  Returns:
    The `DiscreteProcess`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported; the message names both.

  Source: diffusers 0.42 schedulers; the rescaling is Algorithm 1 of arXiv 2305.08891.
  """
  config = dict(config)
  name = config.get("_class_name", "DDIMScheduler")
  if not isinstance(name, str):
    raise InputError(f"scheduler _class_name is {short(name)}; expected the name of a class")
  if name.startswith("FlowM"):
    raise InputError(
      f"the scheduler is {name}, of flow matching; this pipeline's network predicts noise and "
      "needs a scheduler with betas, such as DDIMScheduler"
    )
  if name not in _DEFAULTS:
    raise unknown("scheduler _class_name", name, _DEFAULTS)
  known = {*_FIELDS, *_REFUSED, *_OTHER_SOLVERS}
  others = [field for field in config if field not in known and not field.startswith("_")]
  for field in others:
    if not is_off(config[field]):
      raise unknown("scheduler field", field, known)
  tell("scheduler config", others)
  for field, allowed in _REFUSED.items():
    if config.get(field, allowed[0]) not in allowed:
      raise InputError(
        f"scheduler field {field} is {short(config[field])}, which is not supported; "
        f"expected {' or '.join(map(repr, allowed))}"
      )
  fields = {**_FIELDS, **_DEFAULTS[name], **{k: config[k] for k in _FIELDS if k in config}}
  for field in ("rescale_betas_zero_snr", "set_alpha_to_one", "clip_sample"):
    if fields[field] is not None and not isinstance(fields[field], bool):
      raise InputError(f"scheduler field {field} is {short(fields[field])}; expected true or false")
    fields[field] = bool(fields[field])  # null means false, as in diffusers
  for field, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
    value = fields[field]
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= MAX_TIMESTEPS:
      raise InputError(
        f"scheduler field {field} is {short(value)}; expected an integer from {least} to "
        f"{MAX_TIMESTEPS}"
      )
  for field in ("beta_start", "beta_end", "clip_sample_range"):
    value = fields[field]
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < value <= MAX_NUMBER:
      raise InputError(
        f"scheduler field {field} is {short(value)}; expected a number > 0, at most {MAX_NUMBER}"
      )

  abar = np.cumprod(1 - _betas(fields))
  if fields["rescale_betas_zero_snr"]:
    root = np.sqrt(abar)
    if not root[0] > root[-1]:
      raise InputError("rescale_betas_zero_snr needs more than one timestep")
    abar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
  return DiscreteProcess(
    alphas_cumprod=abar,
    prediction_type=fields["prediction_type"],
    timestep_spacing=fields["timestep_spacing"],
    steps_offset=int(fields["steps_offset"]),
    final_alpha_cumprod=1.0 if fields["set_alpha_to_one"] else float(abar[0]),
    clip_sample=fields["clip_sample"],
    clip_sample_range=float(fields["clip_sample_range"]),
  )


def _betas(fields: Mapping[str, Any]) -> np.ndarray:
  """beta, float64 `[T]`, each in (0, 1]."""
  steps, name = fields["num_train_timesteps"], fields["beta_schedule"]
  start, end = fields["beta_start"], fields["beta_end"]
  if fields["trained_betas"] is not None:
    try:
      betas = np.asarray(fields["trained_betas"], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
      raise InputError(
        f"trained_betas is {short(fields['trained_betas'])}; expected a list of numbers"
      ) from error
    if betas.shape != (steps,):
      raise InputError(
        f"trained_betas has shape {betas.shape}; expected one beta for each of the {steps} "
        "timesteps that num_train_timesteps states"
      )
  elif name == "linear":
    betas = np.linspace(start, end, steps)
  elif name == "scaled_linear":
    betas = np.square(np.linspace(math.sqrt(start), math.sqrt(end), steps))
  elif name == "squaredcos_cap_v2":
    u = np.arange(steps + 1) / steps
    f = np.square(np.cos((u + 0.008) / 1.008 * np.pi / 2))
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
  else:
    raise unknown("beta_schedule", name, BETA_SCHEDULES)
  wrong = np.flatnonzero(~((betas > 0) & (betas <= 1)))
  if wrong.size:
    raise InputError(
      f"beta at timestep {wrong[0]} is {betas[wrong[0]]:g}; expected every beta in (0, 1]: check "
      "beta_start, beta_end and trained_betas"
    )
  return betas


def solver_name(config: Mapping[str, Any]) -> str:
  """The name of the solver that a scheduler's config asks for by its class.

  Args:
    config: The fields of `scheduler_config.json`; one that names no class means DDIM.

  Returns:
    A key of `CLASSES`.

  Raises:
    InputError: The class has no counterpart here (DDPM among others).
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
    num_steps: S, the number of steps; network evaluations too, but for "heun" (2 S - 1) and "pndm"
      (S + 1, or S + 9 with its Runge-Kutta start).
    name: A key of `CLASSES`; by default the one that the file's class says.
    karras: Whether Karras' levels are used; by default as the file's `use_karras_sigmas` says.
      Of effect in euler, heun and dpm_solver_pp_2m alone.
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
  process = from_config({**config, "_class_name": CLASSES[name]})
  if eta and name != "ddim":
    raise InputError(f"eta is {eta}, which solver {name!r} does not have; only 'ddim' does")
  if karras and name not in _KARRAS:
    raise InputError(
      f"Karras sigmas are asked for, which solver {name!r} does not have; only "
      f"{', '.join(map(repr, _KARRAS))} do"
    )
  if name == "ddim":
    return ddim.make(process, num_steps, eta=eta)
  if name == "euler_ancestral":
    return euler.make_ancestral(process, num_steps)
  if name == "pndm":
    skip = bool(config.get("skip_prk_steps", False))
    return pndm.make(process, num_steps, skip_prk_steps=skip)
  karras = bool(config.get("use_karras_sigmas")) if karras is None else karras
  if name in ("euler", "heun"):
    return (euler if name == "euler" else heun).make(process, num_steps, karras=karras)
  cosine = config.get("beta_schedule") == "squaredcos_cap_v2"
  return dpm_solver.make(process, num_steps, karras=karras, round_timesteps=not cosine)
