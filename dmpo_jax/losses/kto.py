"""Diffusion-KTO: each image is desirable or undesirable by itself."""

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import NOT_NEGATIVE, POSITIVE, Diagnostics, PairErrors, checked, diagnose
from dmpo_jax.losses.requirements import Requirements


@checked(
  Requirements(needs_global_batch=True),
  beta=POSITIVE,
  weight_w=NOT_NEGATIVE,
  weight_l=NOT_NEGATIVE,
)
def kto(
  errors: PairErrors, *, beta: float, weight_w: float = 1.0, weight_l: float = 1.0
) -> tuple[jax.Array, Diagnostics]:
  """Diffusion-KTO: a pair counts as one desirable and one undesirable image.

      g = r - e,   g̃ = g - max(0, sg(mean of g over all images of the global batch))
      loss = 1/2 [weight_w (1 - σ(beta g̃_w)) + weight_l (1 - σ(-beta g̃_l))]

  sg stops the gradient. The mean over pairs is the mean over images. The statistic does not depend
  on which image of a pair is called preferred, nor on weights of the pairs.

  Args:
    errors: float32 `[pairs]` of the whole global batch, all four fields.
    beta: Temperature on mean errors, > 0; published: 1000. There is no factor 1/2 before it: at
      policy = reference the gradient is that of DPO at the same beta, halved.
    weight_w: λ of desirable images, >= 0; published: 1.
    weight_l: λ of undesirable images, >= 0; published: 1.

  Returns:
    loss: float32 `[pairs]`; each depends on the others of the batch through the mean.
    diagnostics: `Diagnostics`, float32 `[pairs]`: rewards are beta g and the logit is their
      difference, so twice that of DPO at the same beta.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2404.04465. Reference implementation: jacklishufan/diffusion-kto, `--halo sigmoid`;
    its mean is over a microbatch of all devices.
  """
  diagnostics = diagnose(errors, beta=2 * beta)  # without its factor 1/2
  reward_w, reward_l = diagnostics.reward_w, diagnostics.reward_l
  mean = jax.lax.stop_gradient((jnp.mean(reward_w) + jnp.mean(reward_l)) / 2)
  baseline = jnp.maximum(mean, 0)
  # 1 - σ(x) = σ(-x)
  loss_w = weight_w * jax.nn.sigmoid(baseline - reward_w)
  loss_l = weight_l * jax.nn.sigmoid(reward_l - baseline)
  return (loss_w + loss_l) / 2, diagnostics
