"""Direct distributional optimisation: a potential by dual averaging, samples by Doob's h-transform.

    minimise L(q) = F(q) + beta KL(q || p_ref),   q = exp(-f) p_ref / Z

The method is that of arXiv 2502.02954, whose text and constants could not be consulted: formulas
are derived here from its abstract, and docs/ddo.md says which. Functions are pure: arrays, keys and
functions in, arrays out.
"""

from dmpo_jax.ddo.density import effective_sample_size, kl_divergence, log_normalizer, potential_of
from dmpo_jax.ddo.drift import (
  Drift,
  drift_denoising,
  drift_log_h,
  drift_nested,
  drift_stored,
  posterior_sampler,
)
from dmpo_jax.ddo.drift_losses import denoising_loss, log_h_loss
from dmpo_jax.ddo.first_variations import (
  dpo_loss,
  first_variation_dpo,
  first_variation_dpo_pairs,
  first_variation_kto,
  first_variation_rlhf,
  kto_loss,
)
from dmpo_jax.ddo.processes import OrnsteinUhlenbeck, levels, shifted
from dmpo_jax.ddo.tabular import TabularSolution, check_descent, solve_tabular
from dmpo_jax.ddo.weights import averaging_weights, proximal_weights

__all__ = [
  "Drift",
  "OrnsteinUhlenbeck",
  "TabularSolution",
  "averaging_weights",
  "check_descent",
  "denoising_loss",
  "dpo_loss",
  "drift_denoising",
  "drift_log_h",
  "drift_nested",
  "drift_stored",
  "effective_sample_size",
  "first_variation_dpo",
  "first_variation_dpo_pairs",
  "first_variation_kto",
  "first_variation_rlhf",
  "kl_divergence",
  "kto_loss",
  "levels",
  "log_h_loss",
  "log_normalizer",
  "posterior_sampler",
  "potential_of",
  "proximal_weights",
  "shifted",
  "solve_tabular",
]
