"""The digits model aligned with IPO on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_ipo.py --workdir runs/ipo \
      --config.pipeline=runs/reference/pipeline

beta 100 asks for a margin of 1/(2 beta) = 0.005 in mean errors, a logit of 2.5 at the beta of the
others. The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "ipo", "beta": 100.0})
  return config
