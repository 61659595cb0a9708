"""The digits model aligned with dynamic alpha-DPO on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_dynamic_alpha_dpo.py --workdir runs/dynamic_alpha_dpo \
      --config.pipeline=runs/reference/pipeline

The exponent follows the mean preference over the whole batch, whatever the number of devices. The
settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict(
    {"name": "dynamic_alpha_dpo", "beta": 1000.0, "divergence_alpha": 0.9999}
  )
  return config
