"""MaPO: preference without a reference, beside the denoising error of the preferred image."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dmpo_jax.errors import InputError, unknown
from dmpo_jax.losses.base import (
  POSITIVE,
  Diagnostics,
  PairErrors,
  check_number,
  checked,
  implicit_accuracy,
)
from dmpo_jax.losses.requirements import Requirements

# B_n/n! of the series x/(e^x - 1) - 1 = Σ B_n x^n/n!, n = 1, 2, 4, ..., 12: float32's last digit
# for x <= 1.
_SERIES = (-1 / 2, 1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)


@checked(Requirements(reference=False), beta=POSITIVE)
def mapo(
  errors: PairErrors,
  *,
  beta: float,
  snr: float | None = None,
  num_timesteps: int | None = None,
  form: str = "code",
) -> tuple[jax.Array, Diagnostics]:
  """MaPO: the denoising error of the preferred image and a preference term without reference.

      code:   loss = e_w - beta log σ(num_timesteps [φ(snr e_w) - φ(snr e_l)])
      paper:  loss = e_w - 1/beta log σ(φ(e_w)^beta - φ(e_l)^beta)
      φ(x) = x/(e^x - 1)

  φ falls from 1 at x = 0. For small errors the code's preference term is beta times the DPO loss
  without reference at beta_dpo = num_timesteps · snr.

  Args:
    errors: float32 `[pairs]`, `policy_w` and `policy_l`, >= 0; the reference's are ignored.
    beta: > 0. Weight of the preference term in "code", published: 0.1; exponent and inverse weight
      in "paper", published: 8 to 1024 depending on the task.
    snr: s > 0, "code" alone; published: 0.5.
    num_timesteps: T of the noise schedule, "code" alone; published: 1000.
    form: "code" or "paper". φ_beta of the paper is taken as the power φ^beta; the product beta φ is
      another reading.

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics`, float32 `[pairs]`: the logit is the argument of σ (positive where
      the policy's error on the preferred image is the smaller one), the rewards are its two terms
      less their value at error 0.

  Raises:
    InputError: The form is unknown, snr or num_timesteps are missing or given to the form that has
      none, a hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: reference implementation mapo-t2i/mapo, `utils.py`, for "code"; arXiv 2406.06424v2,
    Eq. 9-11, for "paper".
  """
  if form not in ("code", "paper"):
    raise unknown("form", form, ("code", "paper"))
  if form == "code":
    scale = check_number("snr", snr, POSITIVE)
    exponent, weight = 1.0, beta
    steps = check_number("num_timesteps", num_timesteps, POSITIVE)
  else:
    if snr is not None or num_timesteps is not None:
      raise InputError("snr and num_timesteps do not occur in mapo's form 'paper'; leave them out")
    scale, exponent, steps, weight = 1.0, beta, 1.0, 1 / beta

  def reward(error: jax.Array) -> jax.Array:  # T (φ^exponent - 1)
    return steps * jnp.expm1(exponent * _log_phi(scale * error))

  reward_w, reward_l = reward(errors.policy_w), reward(errors.policy_l)
  logit = reward_w - reward_l
  diagnostics = Diagnostics(logit, reward_w, reward_l, implicit_accuracy(logit))
  return errors.policy_w - weight * log_sigmoid(logit), diagnostics


def _log_phi(x: jax.Array) -> jax.Array:
  """log(x/(e^x - 1)) for x >= 0, to relative precision near 0 and without overflow."""
  small = jnp.where(x < 1, x, 0.0)
  first, *even = _SERIES
  tail = jnp.zeros_like(x)
  for coefficient in reversed(even):
    tail = (tail + coefficient) * jnp.square(small)
  large = jnp.where(x < 1, 1.0, x)
  far = jnp.log(large) - large - jnp.log1p(-jnp.exp(-large))
  return jnp.where(x < 1, jnp.log1p(first * small + tail), far)
