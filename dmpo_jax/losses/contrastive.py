"""FlowCPO: a preferred image pulls the policy's prediction, a rejected one pushes it away."""

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import NOT_NEGATIVE, POSITIVE, Diagnostics, PairErrors, checked, diagnose
from dmpo_jax.losses.requirements import Requirements
from dmpo_jax.losses.residuals import Residuals, check_residuals, inner


@checked(Requirements(residuals=True), beta=POSITIVE, weight_l=NOT_NEGATIVE)
def contrastive(
  errors: PairErrors, residuals: Residuals, *, beta: float, weight_l: float = 1.0
) -> tuple[jax.Array, Diagnostics]:
  """FlowCPO: errors of two mixtures of policy and reference, one on each image of the pair.

      f_w = (1 - beta) f_reference + beta f_policy
      f_l = (1 + beta) f_reference - beta f_policy
      loss = ‖f_w - target_w‖²/d + weight_l ‖f_l - target_l‖²/d

  With D = ‖f_policy - f_reference‖²/d and weight_l = 1, up to a constant of the reference,

      loss = beta (e_w - e_l) + beta (beta - 1) D_w + beta (beta + 1) D_l

  so the margin of Diffusion-DPO enters linearly, and the policy stays near the reference on the
  rejected image. The loss holds for predictions of noise and of velocity alike. With a soft label P
  it is the loss of DiffusionNFT with r = P for the first image and 1 - P for the second, without
  its normalisation and its factor 1/beta.

  Args:
    errors: float32 `[pairs]`, all four fields; for the diagnostics alone.
    residuals: `[pairs, ...]`, any floating dtype, all four fields. The source takes the reference
      from an exponential moving average of the policy (decay 0.99).
    beta: Length of the step from the reference to the mixture, > 0; published: 0.5, and 1 for pairs
      of other models.
    weight_l: Weight of the rejected image, >= 0; published: 1. 0 is fine-tuning of the mixture
      f_w on preferred images; at 10 training diverges, says the source.

  Returns:
    loss: float32 `[pairs]`; r_w + weight_l r_l at policy = reference.
    diagnostics: `Diagnostics` of `dpo` at the same beta, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2609.09905, Theorem B.1 for the expansion; arXiv 2509.16117 (DiffusionNFT).
  """
  fields = ["policy_w", "policy_l", "reference_w", "reference_l"]
  check_residuals(residuals, "contrastive", fields=fields, pairs=len(errors.policy_w))
  policy_w, policy_l, reference_w, reference_l = (x.astype(jnp.float32) for x in residuals)
  # Policy and reference have one target, so a mixture of predictions is one of residuals.
  mixed_w = (1 - beta) * reference_w + beta * policy_w
  mixed_l = (1 + beta) * reference_l - beta * policy_l
  loss = inner(mixed_w, mixed_w) + weight_l * inner(mixed_l, mixed_l)
  return loss, diagnose(errors, beta=beta)
