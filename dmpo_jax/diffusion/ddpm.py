"""The noise process of a diffusion model, and the conversions between what a network may predict.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    abar_t = prod_{s <= t} (1 - beta_s)

The tables are computed in float64 and rounded to float32 once, where they are used; diffusers
accumulates them in float32, so the two differ by float32 rounding (up to 3e-5 on x_t at the
cleanest levels, where 1 - abar loses most digits).
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.errors import InputError, unknown

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """A discrete noise schedule with T levels, and how its sampler walks them.

  Compared and hashed by identity, so that it can be closed over or be a static argument of a jit.

  Attributes:
    alphas_cumprod: abar, float64 `[T]`, strictly decreasing in t, in [0, 1). Read-only.
    prediction_type: What the network predicts: "epsilon", "sample" (x_0) or "v_prediction".
    timestep_spacing: How a sampler picks its steps: "leading", "trailing" or "linspace".
    steps_offset: Added to the steps of "leading".
    final_alpha_cumprod: abar behind the last step of a sampler (1.0: no noise is left).
    clip_sample: Whether a sampler clips the predicted x_0.
    clip_sample_range: The bound of that clipping, in units of x_0.

  Raises:
    InputError: A field cannot be used; among others epsilon prediction with abar = 0 (zero terminal
      SNR), where x_0 cannot be recovered from epsilon.
  """

  alphas_cumprod: np.ndarray
  prediction_type: str = "epsilon"
  timestep_spacing: str = "leading"
  steps_offset: int = 0
  final_alpha_cumprod: float = 1.0
  clip_sample: bool = False
  clip_sample_range: float = 1.0

  def __post_init__(self):
    if self.prediction_type not in PREDICTION_TYPES:
      raise unknown("prediction_type", self.prediction_type, PREDICTION_TYPES)
    if self.timestep_spacing not in TIMESTEP_SPACINGS:
      raise unknown("timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
    abar = np.array(self.alphas_cumprod, np.float64)
    if abar.ndim != 1 or abar.size == 0:
      raise InputError(f"alphas_cumprod has shape {abar.shape}; expected [T] with T >= 1")
    if not (
      np.all(abar >= 0) and np.all(abar.astype(np.float32) < 1) and np.all(np.diff(abar) < 0)
    ):
      raise InputError(
        f"alphas_cumprod must lie in [0, 1) and fall strictly with t; it goes from {abar[0]:g} to "
        f"{abar[-1]:g} (smallest {abar.min():g}): check the betas, each must lie in (0, 1]"
      )
    if abar[-1] == 0 and self.prediction_type == "epsilon":
      raise InputError(
        "prediction_type 'epsilon' with zero terminal SNR: at the last timestep x_t is pure noise "
        "and x_0 cannot be recovered from a prediction of that noise; use 'v_prediction' or "
        "'sample', or set rescale_betas_zero_snr to false"
      )
    if not 0 < self.final_alpha_cumprod <= 1:
      raise InputError(f"final_alpha_cumprod is {self.final_alpha_cumprod}; expected in (0, 1]")
    if self.steps_offset < 0:
      raise InputError(f"steps_offset is {self.steps_offset}; expected an integer >= 0")
    if not 0 < self.clip_sample_range < math.inf:
      raise InputError(f"clip_sample_range is {self.clip_sample_range}; expected a number > 0")
    abar.setflags(write=False)
    object.__setattr__(self, "alphas_cumprod", abar)

  @property
  def num_timesteps(self) -> int:
    """T, the number of noise levels."""
    return self.alphas_cumprod.shape[0]


def add_noise(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """Noises clean samples to level t.

      x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps

  Args:
    schedule: The noise schedule.
    x0: x_0, clean samples, `[B, ...]`.
    noise: eps, standard normal, of x0's shape.
    t: Timesteps in [0, T), integer `[B]` or `[]`. A level outside of the schedule gives NaN.

  Returns:
    x_t, of x0's shape, float32 (or wider, if x0 is).

  Raises:
    InputError: The shapes do not agree, or t is not an integer array.
  """
  _same_shape(x0=x0, noise=noise)
  signal, sigma = levels(schedule, t, x0)
  return signal * x0 + sigma * noise


def velocity(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """The velocity at level t.

      v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0

  Args, Returns, Raises: as `add_noise`.

  Source: Salimans and Ho, arXiv 2202.00512, appendix D.
  """
  _same_shape(x0=x0, noise=noise)
  signal, sigma = levels(schedule, t, x0)
  return signal * noise - sigma * x0


def target(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """What the network is trained to output: eps, x_0 or v_t, by the schedule's prediction type.

  Args, Raises: as `add_noise`.

  Returns:
    `noise` or `x0` as given, or `velocity`; of x0's shape.
  """
  if schedule.prediction_type == "v_prediction":
    return velocity(schedule, x0, noise, t)
  _same_shape(x0=x0, noise=noise)
  return noise if schedule.prediction_type == "epsilon" else x0


def snr(schedule: Schedule, t: jax.Array) -> jax.Array:
  """The signal-to-noise ratio at level t, SNR_t = abar_t / (1 - abar_t).

  Args:
    schedule: The noise schedule.
    t: Timesteps in [0, T), integer, any shape. A level outside of the schedule gives NaN.

  Returns:
    SNR_t (a ratio of powers), float32, of t's shape.
  """
  abar = schedule.alphas_cumprod
  return lookup(abar / (1 - abar), t)


def to_x0(schedule: Schedule, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
  """The clean sample that a network's prediction implies.

      epsilon:       x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
      sample:        x_0 = prediction
      v_prediction:  x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v

  Args:
    schedule: The noise schedule; its prediction type says what `prediction` is.
    prediction: The network's output, `[B, ...]`.
    x_t: The noised samples the network saw, of prediction's shape.
    t: Timesteps in [0, T), integer `[B]` or `[]`. A level outside of the schedule gives NaN.

  Returns:
    x_0, of x_t's shape, float32 (or wider, if x_t is).

  Raises:
    InputError: The shapes do not agree, or t is not an integer array.
  """
  _same_shape(x_t=x_t, prediction=prediction)
  signal, sigma = levels(schedule, t, x_t)
  if schedule.prediction_type == "epsilon":
    return (x_t - sigma * prediction) / signal
  if schedule.prediction_type == "v_prediction":
    return signal * x_t - sigma * prediction
  return prediction.astype(jnp.promote_types(prediction.dtype, signal.dtype))


def to_epsilon(
  schedule: Schedule, prediction: jax.Array, x_t: jax.Array, t: jax.Array
) -> jax.Array:
  """The noise that a network's prediction implies.

      epsilon:       eps = prediction
      sample:        eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)
      v_prediction:  eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t

  Args, Returns, Raises: as `to_x0`.
  """
  _same_shape(x_t=x_t, prediction=prediction)
  signal, sigma = levels(schedule, t, x_t)
  if schedule.prediction_type == "sample":
    return (x_t - signal * prediction) / sigma
  if schedule.prediction_type == "v_prediction":
    return signal * prediction + sigma * x_t
  return prediction.astype(jnp.promote_types(prediction.dtype, signal.dtype))


def levels(schedule: Schedule, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The scales of signal and noise at level t, sqrt(abar_t) and sqrt(1 - abar_t).

  Args:
    schedule: The noise schedule.
    t: Timesteps in [0, T), integer `[B]` or `[]`.
    like: An array `[B, ...]` that the scales are to multiply.

  Returns:
    The two scales, float32, with axes of length 1 appended up to the rank of `like`.

  Raises:
    InputError: t is not an integer array, or has neither no axis nor one of the batch's length.
  """
  shape = jnp.shape(t)
  if shape not in ((), like.shape[:1]):
    raise InputError(
      f"timesteps have shape {shape}, the samples {like.shape}; expected [] or [{like.shape[0]}]"
    )
  abar = schedule.alphas_cumprod
  fit = shape + (1,) * (like.ndim - len(shape))
  return (
    lookup(np.sqrt(abar), t).reshape(fit),
    lookup(np.sqrt(1 - abar), t).reshape(fit),
  )


def lookup(table: np.ndarray, t: jax.Array) -> jax.Array:
  """`table[t]` in float32, with NaN where t lies outside of the table.

  Args:
    table: Constants per timestep, `[T]`.
    t: Timesteps, integer, any shape.

  Returns:
    float32, of t's shape.

  Raises:
    InputError: t is not an integer array.
  """
  t = jnp.asarray(t)
  if not jnp.issubdtype(t.dtype, jnp.integer):
    raise InputError(f"timesteps have dtype {t.dtype}; expected integers, such as int32")
  # jax would clamp an index that is too large and wrap a negative one: a wrong noise level without
  # a word. NaN is noticed at the first loss.
  return (
    jnp.asarray(table, jnp.float32)
    .at[t]
    .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
  )


def _same_shape(**arrays: jax.Array) -> None:
  (first, a), (second, b) = arrays.items()
  if a.shape != b.shape:
    raise InputError(f"{first} has shape {a.shape} and {second} {b.shape}; expected the same shape")


# What diffusers takes for a field that a file leaves out, where it differs by the class that the
# file names; for a field the class does not have, what that class's own sampler does.
_BY_SIGMA = {"timestep_spacing": "linspace"}
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
  "HeunDiscreteScheduler": {**_BY_SIGMA, "beta_start": 0.00085, "beta_end": 0.012},
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
  "thresholding": (False,),
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
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "skip_prk_steps",
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


def from_config(config: Mapping[str, Any]) -> Schedule:
  """The schedule that a diffusers `scheduler_config.json` describes.

      linear:             beta_t = linspace(beta_start, beta_end, T)
      scaled_linear:      beta_t = linspace(sqrt(beta_start), sqrt(beta_end), T)^2
      squaredcos_cap_v2:  beta_t = min(1 - f((t + 1) / T) / f(t / T), 0.999),
                          f(u) = cos^2(pi/2 (u + 0.008) / 1.008)
      trained_betas:      beta_t as given

  With `rescale_betas_zero_snr`, sqrt(abar) is shifted and scaled so that its last value is 0 and
  its first is kept. Whatever solver a file names, the noise process of training is the same: files
  of DDIM, DDPM, PNDM, Euler, Heun, LMS, DPM-Solver, DEIS and UniPC are read, fields that only steer
  another solver have no effect, and a field that is left out has the default of the class that is
  named (DDIM where none is; clip_sample is false where that class has no such field). Some of those
  solvers put 2^-24 in the place of a zero abar; here it is 0, as in training.

  Args:
    config: The file's fields.

  Returns:
    The `Schedule`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported; the message names both.

  Source: diffusers 0.42 schedulers; the rescaling is Algorithm 1 of arXiv 2305.08891.
  """
  config = dict(config)
  name = config.get("_class_name", "DDIMScheduler")
  if name not in _DEFAULTS:
    raise unknown("scheduler _class_name", name, _DEFAULTS)
  for field in config:
    if field not in _FIELDS and field not in _REFUSED and field not in _OTHER_SOLVERS:
      raise unknown("scheduler field", field, {*_FIELDS, *_REFUSED, *_OTHER_SOLVERS})
  for field, allowed in _REFUSED.items():
    if config.get(field, allowed[0]) not in allowed:
      raise InputError(
        f"scheduler field {field} is {config[field]!r}, which is not supported; "
        f"expected {' or '.join(map(repr, allowed))}"
      )
  fields = {**_FIELDS, **_DEFAULTS[name], **{k: config[k] for k in _FIELDS if k in config}}
  for field in ("rescale_betas_zero_snr", "set_alpha_to_one", "clip_sample"):
    if not isinstance(fields[field], bool):
      raise InputError(f"scheduler field {field} is {fields[field]!r}; expected true or false")
  for field, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
      raise InputError(f"scheduler field {field} is {value!r}; expected an integer >= {least}")
  for field in ("beta_start", "beta_end", "clip_sample_range"):
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not value > 0:
      raise InputError(f"scheduler field {field} is {value!r}; expected a number > 0")

  abar = np.cumprod(1 - _betas(fields))
  if fields["rescale_betas_zero_snr"]:
    root = np.sqrt(abar)
    if not root[0] > root[-1]:
      raise InputError("rescale_betas_zero_snr needs more than one timestep")
    abar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
  return Schedule(
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
    betas = np.asarray(fields["trained_betas"], np.float64)
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
