"""The digits model aligned with alpha-DPO on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_alpha_dpo.py --workdir runs/alpha_dpo \
      --config.pipeline=runs/reference/pipeline

The exponent is the published one, beta that of the others here. The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "alpha_dpo", "beta": 1000.0, "divergence_alpha": 0.9999})
  return config
