"""IPO: a squared distance of the preference margin from a finite target."""

import math

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import Diagnostics, PairErrors, check_errors, check_number, diagnose
from dmpo_jax.losses.requirements import Requirements


def ipo(errors: PairErrors, *, beta: float) -> tuple[jax.Array, Diagnostics]:
  """IPO: the margin is drawn to 1/(2 beta) by a parabola instead of being pushed to infinity.

      loss = (-Δ - 1/(2 beta))²,   Δ = (e_w - e_l) - (r_w - r_l)

  In the logit it is (2/beta)² (z - 1/4)²: every beta has its minimum at z = 1/4, slope -2/beta² at
  policy = reference, and the force on a pair grows with its distance from there, on either side.

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Inverse of twice the wanted margin in mean errors, > 0. No published default on this
      scale; the default of the public program, 5000, is that of DPO (a margin of 1e-4, a loss of
      1e-8 and as small a gradient: mind the optimizer's eps).

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2310.12036, for language models; on errors, without a factor 1/2 in the
    margin, as in diffusers' research program for Diffusion-DPO (which stops there with an undefined
    argument).
  """
  beta = check_number("beta", beta, low=0.0, high=math.inf)
  errors = check_errors(errors, ipo)
  margin = (errors.policy_l - errors.reference_l) - (errors.policy_w - errors.reference_w)
  return jnp.square(margin - 1 / (2 * beta)), diagnose(errors, beta=beta)


ipo.requirements = Requirements()
