"""The digits model aligned with the hinge loss on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_hinge.py --workdir runs/hinge \
      --config.pipeline=runs/reference/pipeline

beta 200 asks for a margin of 1/beta = 0.005 in mean errors, as digits_ipo does. The settings were
not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "hinge", "beta": 200.0})
  return config
