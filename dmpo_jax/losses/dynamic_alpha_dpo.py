"""Alpha-DPO whose exponent follows how well the batch is ranked."""

import math

import jax
import jax.numpy as jnp

from dmpo_jax.losses.alpha_dpo import alpha_divergence
from dmpo_jax.losses.base import Diagnostics, PairErrors, check_errors, check_number, diagnose
from dmpo_jax.losses.requirements import Requirements


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
    divergence_alpha: What the mean is multiplied by, in [0, 1]; published: 0.9999.

  Returns:
    loss: float32 `[pairs]`; each depends on the others of the batch through a.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: the public program of Diffusion alpha-DPO (yangli-lab/Diffusion_alpha-DPO_ICLR2026), after
    its `--reweight_step`; there the mean is over a micro-batch of all devices.
  """
  beta = check_number("beta", beta, low=0.0, high=math.inf)
  ceiling = check_number(
    "divergence_alpha", divergence_alpha, low=0.0, high=1.0, closed_low=True, closed_high=True
  )
  diagnostics = diagnose(check_errors(errors, dynamic_alpha_dpo), beta=beta)
  a = ceiling * jax.lax.stop_gradient(jnp.mean(jax.nn.sigmoid(diagnostics.logit)))
  return alpha_divergence(diagnostics.logit, a), diagnostics


dynamic_alpha_dpo.requirements = Requirements(
  needs_global_batch=True,
  why_no_soft_labels="its exponent is the batch's mean preference for the preferred images, which "
  "is not defined where a label leaves open which image that is; use alpha_dpo",
)
