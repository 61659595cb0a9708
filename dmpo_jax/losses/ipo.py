"""IPO: a squared distance of the preference margin from a finite target."""

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import POSITIVE, Diagnostics, PairErrors, checked, diagnose


@checked(beta=POSITIVE)
def ipo(errors: PairErrors, *, beta: float) -> tuple[jax.Array, Diagnostics]:
  """IPO: a parabola with its minimum at the margin 1/(2 beta), instead of at infinity.

      loss = (-Δ - 1/(2 beta))²,   Δ = (e_w - e_l) - (r_w - r_l)

  In the logit it is (2/beta)² (z - 1/4)²: every beta has its minimum at z = 1/4, slope -2/beta² at
  policy = reference, and the gradient grows with the distance from there, on either side.

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Inverse of twice the wanted margin in mean errors, > 0. The default of the reference
      implementation is that of DPO, 5000: a margin of 1e-4, a loss of 1e-8 and an equally small
      gradient, which the optimizer's eps must not exceed.

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2310.12036, for language models. Reference implementation on errors, without a
    factor 1/2 in the margin: diffusers' research project Diffusion-DPO.
  """
  margin = (errors.policy_l - errors.reference_l) - (errors.policy_w - errors.reference_w)
  return jnp.square(margin - 1 / (2 * beta)), diagnose(errors, beta=beta)
