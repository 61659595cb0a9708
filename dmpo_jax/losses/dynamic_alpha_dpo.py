"""Alpha-DPO with an exponent that follows the ranking accuracy of the batch."""

import jax
import jax.numpy as jnp

from dmpo_jax.losses.alpha_dpo import alpha_divergence
from dmpo_jax.losses.base import POSITIVE, Diagnostics, Interval, PairErrors, checked, diagnose
from dmpo_jax.losses.requirements import Requirements


@checked(
  Requirements(
    needs_global_batch=True,
    why_no_soft_labels="its exponent is the batch's mean preference for the preferred images, "
    "which is not defined where a label leaves open which image that is; use alpha_dpo",
  ),
  beta=POSITIVE,
  divergence_alpha=Interval(0, 1, closed_low=True, closed_high=True),
)
def dynamic_alpha_dpo(
  errors: PairErrors, *, beta: float, divergence_alpha: float
) -> tuple[jax.Array, Diagnostics]:
  """Alpha-DPO with an exponent that grows with the policy's mean preference over the batch.

      a = divergence_alpha · sg(mean over the global batch of σ(z))
      loss = (p^a - (1 - a) - a p)/(a (a - 1)),   p = σ(z)

  sg stops the gradient. At policy = reference a is half of divergence_alpha.

  Args:
    errors: float32 `[pairs]` of the whole global batch, all four fields.
    beta: Temperature on mean errors, > 0; published: 4000 to 5000.
    divergence_alpha: Factor of the mean, in [0, 1]; published: 0.9999.

  Returns:
    loss: float32 `[pairs]`; each depends on the others of the batch through a.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: Diffusion alpha-DPO. Reference implementation: yangli-lab/Diffusion_alpha-DPO_ICLR2026,
    after its `--reweight_step`; its mean is over a microbatch of all devices.
  """
  diagnostics = diagnose(errors, beta=beta)
  a = divergence_alpha * jax.lax.stop_gradient(jnp.mean(jax.nn.sigmoid(diagnostics.logit)))
  return alpha_divergence(diagnostics.logit, a), diagnostics
