"""DDIM: which timesteps a sampler visits, and one step between two of them."""

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.diffusion.schedule import Schedule, lookup, to_epsilon, to_x0
from dmpo_jax.errors import InputError


def timesteps(schedule: Schedule, num_steps: int) -> np.ndarray:
  """The S timesteps that a sampler visits, noisiest first.

      leading:   t_i = (S - 1 - i) floor(T / S) + steps_offset
      trailing:  t_i = round(T - i T / S) - 1
      linspace:  t_i = round((T - 1) (S - 1 - i) / (S - 1))

  Only "trailing" and "linspace" begin at the noisiest level T - 1, as zero terminal SNR needs.

  Args:
    schedule: The noise schedule, which names the spacing.
    num_steps: S, the number of network evaluations, 1 to T.

  Returns:
    int32 `[S]`.

  Raises:
    InputError: S lies outside of [1, T], or the offset pushes the first timestep past T - 1.

  Source: diffusers' DDIMScheduler; arXiv 2305.08891, Table 2.
  """
  total = schedule.num_timesteps
  if not 1 <= num_steps <= total:
    raise InputError(f"num_steps is {num_steps}; expected 1 to {total}, the schedule's timesteps")
  if schedule.timestep_spacing == "leading":
    steps = np.arange(num_steps)[::-1] * (total // num_steps) + schedule.steps_offset
  elif schedule.timestep_spacing == "trailing":
    # By arange, as diffusers does, so that its rounding of halves is met; where its own rounding
    # adds a last step at timestep -1, that step is left away.
    steps = np.round(np.arange(total, 0, -total / num_steps))[:num_steps] - 1
  else:
    steps = np.round(np.linspace(0, total - 1, num_steps))[::-1]
  if steps[0] >= total:
    raise InputError(
      f"num_steps {num_steps} with steps_offset {schedule.steps_offset} begins at timestep "
      f"{steps[0]:.0f}, but the schedule ends at {total - 1}: take fewer steps"
    )
  return steps.astype(np.int32)


def previous(schedule: Schedule, num_steps: int) -> np.ndarray:
  """The level each of the S steps leads to: t - floor(T / S), negative behind the last step.

  This is diffusers' rule, kept so that an exported model samples alike there. It is the next
  timestep exactly for "leading", to within one for "trailing"; with "linspace" it lies a little
  above the next timestep.

  Args, Raises: as `timesteps`.

  Returns:
    int32 `[S]`.
  """
  return timesteps(schedule, num_steps) - np.int32(schedule.num_timesteps // num_steps)


def step(
  schedule: Schedule,
  prediction: jax.Array,
  t: jax.Array,
  t_prev: jax.Array,
  x: jax.Array,
  *,
  eta: float = 0.0,
  noise: jax.Array | None = None,
) -> jax.Array:
  """One DDIM step from level t to level t_prev.

      x_prev  = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - sigma^2) eps + sigma noise
      sigma^2 = eta^2 (1 - abar_prev) / (1 - abar_t) (1 - abar_t / abar_prev)

  with x_0 and eps as `to_x0` and `to_epsilon` give them, x_0 clipped if the schedule says so (eps
  is not recomputed from the clipped x_0, as in diffusers). abar_prev is the schedule's
  `final_alpha_cumprod` where t_prev is negative. eta = 0 is deterministic, eta = 1 ancestral.

  Args:
    schedule: The noise schedule; its prediction type says what `prediction` is.
    prediction: The network's output at (x, t), `[B, ...]`.
    t: Timesteps in [0, T), integer `[B]` or `[]`.
    t_prev: Levels to go to, below t, integer, of t's shape.
    x: x_t, of prediction's shape.
    eta: In [0, 1].
    noise: Standard normal, of x's shape; needed where eta > 0.

  Returns:
    x_prev, of x's shape, float32 (or wider, if x is).

  Raises:
    InputError: eta lies outside of [0, 1] or lacks its noise, or the shapes do not agree.

  Source: arXiv 2010.02502, Eq. 12 and 16.
  """
  if not 0 <= eta <= 1:
    raise InputError(f"eta is {eta}; expected 0 (deterministic) to 1 (ancestral)")
  if eta > 0 and (noise is None or noise.shape != x.shape):
    given = "none is given" if noise is None else f"its shape is {noise.shape}"
    raise InputError(f"eta is {eta}, which needs noise of shape {x.shape}; {given}")
  if jnp.shape(t_prev) != jnp.shape(t):
    raise InputError(
      f"t has shape {jnp.shape(t)} and t_prev {jnp.shape(t_prev)}; expected the same"
    )
  x0 = to_x0(schedule, prediction, x, t)
  epsilon = to_epsilon(schedule, prediction, x, t)
  if schedule.clip_sample:
    x0 = jnp.clip(x0, -schedule.clip_sample_range, schedule.clip_sample_range)

  # abar, with what lies behind the last step put before timestep 0.
  table = np.concatenate([[schedule.final_alpha_cumprod], schedule.alphas_cumprod])
  here, there = jnp.asarray(t) + 1, jnp.maximum(jnp.asarray(t_prev), -1) + 1
  shape = jnp.shape(t) + (1,) * (x.ndim - jnp.ndim(t))
  signal_prev = lookup(np.sqrt(table), there).reshape(shape)
  noise_prev = lookup(1 - table, there)
  if eta == 0:
    return signal_prev * x0 + jnp.sqrt(noise_prev).reshape(shape) * epsilon

  shrink = 1 - lookup(table, here) / lookup(table, there)
  variance = eta**2 * noise_prev / lookup(1 - table, here) * shrink
  # At eta = 1 from abar_t = 0 no direction is left: rounding must not make its square negative.
  direction = jnp.sqrt(jnp.maximum(noise_prev - variance, 0)).reshape(shape) * epsilon
  fresh = jnp.sqrt(jnp.maximum(variance, 0)).reshape(shape) * noise
  return signal_prev * x0 + direction + fresh
