"""Flow process and solver that a diffusers `scheduler_config.json` of flow matching describes."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmpo_jax.common.idle import is_off, tell
from dmpo_jax.diffusion import flow_solvers, flow_timesteps, sigmas
from dmpo_jax.diffusion.flow import FlowProcess
from dmpo_jax.diffusion.solver import Solver
from dmpo_jax.errors import InputError, short, unknown

CLASSES = {
  "euler": "FlowMatchEulerDiscreteScheduler",
  "heun": "FlowMatchHeunDiscreteScheduler",
  "dpm_solver_pp_2m": "DPMSolverMultistepScheduler",
}
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

# Fields that a class does not have or would change what it does in ways that are not offered, with
# the values that leave it alone.
_REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
  "euler": {"invert_sigmas": (False, None)},
  "heun": {
    "invert_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None, 0),
    "stochastic_sampling": (False, None),
    **dict.fromkeys(SPACINGS, (False, None)),
  },
  "dpm_solver_pp_2m": {
    "invert_sigmas": (False, None),
    "shift_terminal": (None, 0),
    "stochastic_sampling": (False, None),
    "time_shift_type": ("exponential", None),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "thresholding": (False, None),
    "use_lu_lambdas": (False, None),
    "final_sigmas_type": ("zero",),
    **dict.fromkeys(SPACINGS, (False, None)),
  },
}
# Fields of DPM-Solver++ for processes with betas, without effect on flow matching.
_IDLE = frozenset(
  {
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "lower_order_final",
    "euler_at_final",
    "lambda_min_clipped",
    "variance_type",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
    "predict_x0",
    "disable_corrector",
    "solver_p",
  }
)


@dataclasses.dataclass(frozen=True)
class FlowSchedule:
  """The fields of a flow matching scheduler, with the names, defaults and meaning of diffusers'.

  Attributes:
    num_train_timesteps: T, the factor between noise levels and the network's time input.
    shift: s of `flow_timesteps.shifted`, where shifting is not dynamic.
    use_dynamic_shifting: Whether the shift depends on the number of image tokens N instead:
      mu = base_shift + (max_shift - base_shift) (N - base_image_seq_len) /
      (max_image_seq_len - base_image_seq_len).
    base_shift: mu at base_image_seq_len tokens.
    max_shift: mu at max_image_seq_len tokens.
    base_image_seq_len: See above.
    max_image_seq_len: See above.
    time_shift_type: "exponential" shifts by s = e^mu, "linear" by s = mu.
    shift_terminal: The levels are stretched so that the last of them is this; None or 0: not.
    use_karras_sigmas: Whether the levels between the first and the last are Karras'.
    use_exponential_sigmas: Whether they fall by a constant factor.
    use_beta_sigmas: Whether they follow a beta distribution.
    stochastic_sampling: Whether Euler's method adds fresh noise in each step.
  """

  num_train_timesteps: int = 1000
  shift: float = 1.0
  use_dynamic_shifting: bool = False
  base_shift: float = 0.5
  max_shift: float = 1.15
  base_image_seq_len: int = 256
  max_image_seq_len: int = 4096
  time_shift_type: str = "exponential"
  shift_terminal: float | None = None
  use_karras_sigmas: bool = False
  use_exponential_sigmas: bool = False
  use_beta_sigmas: bool = False
  stochastic_sampling: bool = False

  def shift_of(self, tokens: int | None) -> float:
    """The shift s of images of so many tokens.

    Raises:
      InputError: Shifting is dynamic, and the number of tokens is None or gives no shift.
    """
    if not self.use_dynamic_shifting:
      return self.shift
    if tokens is None:
      raise InputError(
        "the scheduler shifts noise levels by the size of the image (use_dynamic_shifting): give "
        "the size with the number of steps"
      )
    span = self.max_image_seq_len - self.base_image_seq_len
    slope = (self.max_shift - self.base_shift) / span
    mu = self.base_shift + slope * (tokens - self.base_image_seq_len)
    shift = mu if self.time_shift_type == "linear" else math.exp(min(mu, 700.0))
    if not 0 < shift <= 1e4:
      raise InputError(
        f"the scheduler's base_shift {self.base_shift:g} and max_shift {self.max_shift:g} give "
        f"images of {tokens} tokens the shift {shift:g}; expected > 0, at most 10000"
      )
    return shift


def is_flow(config: Mapping[str, Any]) -> bool:
  """Whether a scheduler's config describes flow matching.

  Args:
    config: The fields of `scheduler_config.json`.
  """
  flow = str(config.get("_class_name")).startswith("FlowM")
  return flow or bool(config.get("use_flow_sigmas"))


def read(config: Mapping[str, Any]) -> FlowSchedule:
  """Reads diffusers' `scheduler_config.json` of a flow matching scheduler.

  Args:
    config: The file's fields, of FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler,
      or DPMSolverMultistepScheduler with use_flow_sigmas; absent ones have the class's default.

  Returns:
    A `FlowSchedule`.

  Raises:
    InputError: The class is another one, or a field is unknown or has a value that is not
      supported; the message names it.
  """
  name = config.get("_class_name", CLASSES["euler"])
  if not isinstance(name, str):
    raise InputError(f"scheduler _class_name is {short(name)}; expected the name of a class")
  if name not in CLASSES.values() and is_flow(config):
    raise unknown("scheduler of flow matching", name, CLASSES.values())
  if not is_flow({"_class_name": name, **config}):
    raise InputError(
      f"the scheduler is {name}, of a network that predicts noise; this pipeline's network "
      f"predicts the velocity of flow matching and needs {CLASSES['euler']}"
    )
  prediction = config.get("prediction_type")
  if prediction not in (None, "flow_prediction"):
    raise InputError(
      f"scheduler field prediction_type is {short(prediction)}; networks of flow matching predict "
      "velocities, so it must be absent or 'flow_prediction'"
    )
  fields = {field.name: field.default for field in dataclasses.fields(FlowSchedule)}
  others = {"flow_shift", "use_flow_sigmas", "prediction_type", "invert_sigmas"}
  others |= {field for refused in _REFUSED.values() for field in refused}
  idle = []
  for field, value in config.items():
    if field.startswith("_") or field in _IDLE or field in others or field in fields:
      continue
    if not is_off(value):
      raise unknown("field of a flow matching scheduler", field, {*fields, *others, *_IDLE})
    idle.append(field)
  tell("scheduler config", idle)
  if name == CLASSES["dpm_solver_pp_2m"]:
    config = {**config, "shift": config.get("flow_shift", 1.0)}
  values = {key: config[key] for key in fields if config.get(key) is not None}
  schedule = FlowSchedule(**values)
  _check(schedule)
  _refuse(_solver_of_class(name), config)
  return schedule


def from_config(config: Mapping[str, Any]) -> FlowProcess:
  """The noise process that a flow matching scheduler's config describes.

  Args:
    config: The fields of `scheduler_config.json`.

  Returns:
    The `FlowProcess`, whose shift is the scheduler's; None where it depends on the image's size.

  Raises:
    InputError: See `read`.
  """
  schedule = read(config)
  shift = None if schedule.use_dynamic_shifting else schedule.shift
  return FlowProcess(shift=shift, num_timesteps=schedule.num_train_timesteps)


def solver_name(config: Mapping[str, Any]) -> str:
  """The name of the solver that a flow matching scheduler's config asks for by its class.

  Args:
    config: The fields of `scheduler_config.json`; one that names no class means Euler.

  Returns:
    A key of `CLASSES`.

  Raises:
    InputError: See `read`.
  """
  read(config)
  return _solver_of_class(config.get("_class_name", CLASSES["euler"]))


def make_solver(
  config: Mapping[str, Any],
  num_steps: int,
  *,
  name: str | None = None,
  karras: bool | None = None,
  tokens: int | None = None,
) -> Solver:
  """The solver that a flow matching scheduler's config describes, or another on the same schedule.

  Args:
    config: The fields of `scheduler_config.json`.
    num_steps: S, 1 to the scheduler's T. Heun evaluates the network 2 S - 1 times.
    name: A key of `CLASSES`; by default the one that the file's class says. DPM-Solver++ takes the
      scheduler's shift as its flow_shift.
    karras: Whether Karras' levels are used; by default as the file says. Of euler alone.
    tokens: The number of image tokens, for schedulers that shift by it.

  Returns:
    The `Solver`; its timesteps are noise levels in [0, 1].

  Raises:
    InputError: The name is not known, a field has a value that the solver does not offer, or S is
      out of range.
  """
  schedule = read(config)
  name = solver_name(config) if name is None else name
  if name not in CLASSES:
    raise unknown("solver of flow matching", name, CLASSES)
  if karras is not None:
    config = {**config, "use_karras_sigmas": karras}
    schedule = dataclasses.replace(schedule, use_karras_sigmas=karras)
    _check(schedule)
  _refuse(name, config)
  if isinstance(num_steps, bool) or not 1 <= num_steps <= schedule.num_train_timesteps:
    raise InputError(f"num_steps is {num_steps}; expected 1 to {schedule.num_train_timesteps}")
  shift = schedule.shift_of(tokens)
  if name == "dpm_solver_pp_2m":
    total = schedule.num_train_timesteps
    levels = 1 - np.linspace(1, 1 / total, num_steps + 1)[:0:-1]
    levels = flow_timesteps.shifted(levels, shift)
    return flow_solvers.dpm_solver_pp_2m(levels, num_timesteps=total)
  levels = noise_levels(schedule, num_steps, shift)
  if name == "heun":
    return flow_solvers.heun(levels)
  return (flow_solvers.stochastic if schedule.stochastic_sampling else flow_solvers.euler)(levels)


def noise_levels(schedule: FlowSchedule, num_steps: int, shift: float) -> np.ndarray:
  """The noise levels of S steps of Euler's method, as diffusers computes them.

  A shift that is not dynamic acts twice on the last level: diffusers shifts its table of T levels,
  takes the table's ends, and shifts what lies between them.

  Args:
    schedule: The scheduler's fields.
    num_steps: S.
    shift: From `FlowSchedule.shift_of`.

  Returns:
    float64 `[S]`, falling from 1.

  Raises:
    InputError: The schedule needs more steps.
  """
  least = 1 / schedule.num_train_timesteps
  if not schedule.use_dynamic_shifting:
    least = flow_timesteps.shifted(least, shift)
  levels = flow_timesteps.shifted(np.linspace(1.0, least, num_steps), shift)
  if schedule.shift_terminal:
    if num_steps == 1:
      raise InputError("num_steps is 1; a scheduler with shift_terminal needs at least 2 steps")
    levels = 1 - (1 - levels) * (1 - schedule.shift_terminal) / (1 - levels[-1])
  high, low = levels[0], levels[-1]
  if schedule.use_karras_sigmas:
    return sigmas.karras(high, low, num_steps)
  if schedule.use_exponential_sigmas:
    return np.exp(np.linspace(math.log(high), math.log(low), num_steps))
  if schedule.use_beta_sigmas:
    import scipy.stats

    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, num_steps), 0.6, 0.6)
    return low + quantiles * (high - low)
  return levels


def _solver_of_class(class_name: str) -> str:
  return next(name for name, offered in CLASSES.items() if offered == class_name)


def _refuse(name: str, config: Mapping[str, Any]) -> None:
  """Raises InputError for a field whose value a solver does not offer."""
  for field, allowed in _REFUSED[name].items():
    if config.get(field, allowed[0]) not in allowed:
      raise InputError(
        f"scheduler field {field} is {short(config[field])}, which solver {name!r} of flow "
        f"matching does not offer; expected {' or '.join(map(repr, allowed))}"
      )


def _check(schedule: FlowSchedule) -> None:
  """Raises InputError for a field out of range."""

  def require(holds: bool, field: str, expected: str) -> None:
    if not holds:
      value = getattr(schedule, field)
      raise InputError(f"scheduler field {field} is {short(value)}; expected {expected}")

  def whole(*names: str) -> None:
    for field in names:
      value = getattr(schedule, field)
      integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
      require(integer and 1 <= value <= 10**6, field, "an integer from 1 to 1000000")

  whole("num_train_timesteps")
  for field in ("use_dynamic_shifting", "stochastic_sampling", *SPACINGS):
    require(isinstance(getattr(schedule, field), bool), field, "true or false")
  require(
    schedule.time_shift_type in ("exponential", "linear"),
    "time_shift_type",
    "'exponential' or 'linear'",
  )
  terminal = schedule.shift_terminal
  require(
    terminal is None or (_number(terminal) and 0 <= terminal < 1),
    "shift_terminal",
    "null or a number in [0, 1)",
  )
  if schedule.use_dynamic_shifting:
    whole("base_image_seq_len", "max_image_seq_len")
    for field in ("base_shift", "max_shift"):
      value = getattr(schedule, field)
      require(_number(value) and abs(value) <= 1e4, field, "a number from -10000 to 10000")
    different = schedule.max_image_seq_len != schedule.base_image_seq_len
    require(different, "max_image_seq_len", "another number than base_image_seq_len")
  else:
    shift = schedule.shift
    require(_number(shift) and 0 < shift <= 1e4, "shift", "a number > 0, at most 10000")
  chosen = [field for field in SPACINGS if getattr(schedule, field)]
  if len(chosen) > 1:
    raise InputError(f"scheduler fields {' and '.join(chosen)} are true; expected one at most")


def _number(value: object) -> bool:
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and -math.inf < value < math.inf
