"""DSPO: the score of the preferred image, corrected along the policy's step from the reference."""

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import POSITIVE, Diagnostics, PairErrors, checked, diagnose
from dmpo_jax.losses.requirements import Requirements
from dmpo_jax.losses.residuals import Residuals, check_residuals, inner


@checked(Requirements(residuals=True), beta=POSITIVE)
def dspo(errors: PairErrors, residuals: Residuals, *, beta: float) -> tuple[jax.Array, Diagnostics]:
  """DSPO: the preferred image's residual, less a fraction of its change from the reference.

      loss = ‖R_w - beta (1 - σ(z)) (R_w - Q_w)‖²/d,   z = -beta/2 ((e_w - e_l) - (r_w - r_l))
      R = f_policy - target,   Q = f_reference - target

  Both betas are the same one, as in the source. At the published 0.001 z is nearly 0, so 1 - σ(z)
  is 1/2, the rejected image hardly enters, and the loss is close to `sft`. The gradient passes
  through σ(z), as in the source.

  Args:
    errors: float32 `[pairs]`, all four fields.
    residuals: `[pairs, ...]`, any floating dtype; `policy_w` and `reference_w` enter. R_w - Q_w is
      f_policy - f_reference, for both have one target.
    beta: > 0; published: 0.001.

  Returns:
    loss: float32 `[pairs]`; e_w at policy = reference.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: reference implementation huaishengzhu/DSPO, the branch for SD1.5. The branch for SDXL
    switches between two other losses at a threshold and is not offered.
  """
  check_residuals(residuals, "dspo", fields=["policy_w", "reference_w"], pairs=len(errors.policy_w))
  diagnostics = diagnose(errors, beta=beta)
  share = beta * jax.nn.sigmoid(-diagnostics.logit)
  policy, reference = (x.astype(jnp.float32) for x in (residuals.policy_w, residuals.reference_w))
  share = share.reshape(-1, *(1 for _ in policy.shape[1:]))
  corrected = policy - share * (policy - reference)
  return inner(corrected, corrected), diagnostics
