"""Dynamic alpha-DPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_dynamic_alpha_dpo.py --workdir runs/dynamic_alpha_dpo \
      --config.pipeline=runs/reference/pipeline

The exponent follows the mean preference over the global batch.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict(
    {"name": "dynamic_alpha_dpo", "beta": 1000.0, "divergence_alpha": 0.9999}
  )
  return config
