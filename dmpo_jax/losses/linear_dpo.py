"""Linear-DPO: the preferred and the rejected error, weighted by a clipped linear factor."""

import jax
import jax.numpy as jnp

from dmpo_jax.errors import unknown
from dmpo_jax.losses.base import POSITIVE, Diagnostics, Interval, PairErrors, checked, diagnose

CLIPS = ("code", "paper")


@checked(beta=POSITIVE, eta=Interval(0, 0.5, closed_low=True))
def linear_dpo(
  errors: PairErrors, *, beta: float, eta: float, clip: str = "code"
) -> tuple[jax.Array, Diagnostics]:
  """Linear-DPO: a one-sided Huber loss of the pair's margin, with a bounded slope.

      Δ = (e_w - e_l) - (r_w - r_l)
      ω(Δ) = clip(beta Δ/5 + 1/2, eta, 1 - eta)     clip "code"
      ω(Δ) = clip(beta Δ/5 + 1/2, eta, 1)           clip "paper"
      loss = ∫_0^Δ ω(u) du

  The loss is 0 and its slope 1/2 at policy = reference. Its gradient is that of sg(ω) (e_w - e_l),
  which the source minimises. A pair whose margin is learned (beta Δ < -5/2) keeps the slope eta,
  one that is badly misranked has slope 1 - eta or 1; so beta sets how soon a pair saturates, not
  the size of the gradient, and learning rates are those of fine-tuning.

  Args:
    errors: float32 `[pairs]`, all four fields. The source takes the reference from an exponential
      moving average of the policy.
    beta: Steepness of ω on mean errors, > 0; published: 100 for SD1.5, 500 for SDXL.
    eta: Least weight of a pair, in [0, 1/2); published: 1e-3 for SD1.5, 0 for SDXL.
    clip: "code" bounds ω by [eta, 1 - eta] as the source's program does, "paper" by [eta, 1].

  Returns:
    loss: float32 `[pairs]`; negative where the margin is learned.
    diagnostics: `Diagnostics`, float32 `[pairs]`, with the logit of `dpo` at the same beta.

  Raises:
    InputError: The clip is unknown, a hyperparameter is out of range, a field is missing, shapes or
      dtypes are wrong.

  Source: arXiv 2605.21123. Reference implementation: the authors' `train_sd_dpo.py`, whose clip
    differs from the paper's.
  """
  if clip not in CLIPS:
    raise unknown("clip of linear_dpo", clip, CLIPS)
  diagnostics = diagnose(errors, beta=beta)
  margin = -2 / beta * diagnostics.logit
  low, high = eta, 1 - eta if clip == "code" else 1.0
  # ω = beta Δ/5 + 1/2 between the two ends, constant beyond them.
  first, last = 5 / beta * (low - 0.5), 5 / beta * (high - 0.5)
  middle = jnp.clip(margin, first, last)
  loss = beta / 10 * jnp.square(middle) + middle / 2
  loss += low * jnp.minimum(margin - first, 0) + high * jnp.maximum(margin - last, 0)
  return loss, diagnostics
