"""Diffusion-KTO: each image is liked or disliked by itself."""

import math

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import Diagnostics, PairErrors, check_errors, check_number, diagnose
from dmpo_jax.losses.requirements import Requirements


def kto(
  errors: PairErrors, *, beta: float, weight_w: float = 1.0, weight_l: float = 1.0
) -> tuple[jax.Array, Diagnostics]:
  """Diffusion-KTO: a pair counts as one liked and one disliked image.

      g = r - e,   g̃ = g - max(0, sg(mean of g over all images of the global batch))
      loss = 1/2 [weight_w (1 - σ(beta g̃_w)) + weight_l (1 - σ(-beta g̃_l))]

  sg stops the gradient. The mean over pairs is the mean over images. The statistic does not depend
  on which image of a pair is called preferred, nor on weights of the pairs.

  Args:
    errors: float32 `[pairs]` of the whole global batch, all four fields.
    beta: Temperature on mean errors, > 0; published: 1000. There is no factor 1/2 before it: at
      policy = reference the gradient is that of DPO at the same beta, halved.
    weight_w: λ of liked images, >= 0; published: 1.
    weight_l: λ of disliked images, >= 0; published: 1.

  Returns:
    loss: float32 `[pairs]`; each depends on the others of the batch through the mean.
    diagnostics: `Diagnostics`, float32 `[pairs]`: rewards are beta g and the logit is their
      difference, so twice that of DPO at the same beta.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: the public program jacklishufan/diffusion-kto (arXiv 2404.04465), `--halo sigmoid`; there
    the mean is over a micro-batch of all devices.
  """
  beta = check_number("beta", beta, low=0.0, high=math.inf)
  weight_w = check_number("weight_w", weight_w, low=0.0, high=math.inf, closed_low=True)
  weight_l = check_number("weight_l", weight_l, low=0.0, high=math.inf, closed_low=True)
  diagnostics = diagnose(check_errors(errors, kto), beta=2 * beta)  # without its factor 1/2
  liked, disliked = diagnostics.reward_w, diagnostics.reward_l
  mean = jax.lax.stop_gradient((jnp.mean(liked) + jnp.mean(disliked)) / 2)
  baseline = jnp.maximum(mean, 0)
  # 1 - σ(x) = σ(-x)
  loss_w = weight_w * jax.nn.sigmoid(baseline - liked)
  loss_l = weight_l * jax.nn.sigmoid(disliked - baseline)
  return (loss_w + loss_l) / 2, diagnostics


kto.requirements = Requirements(needs_global_batch=True)
