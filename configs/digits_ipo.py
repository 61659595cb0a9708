"""IPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_ipo.py --workdir runs/ipo \
      --config.pipeline=runs/reference/pipeline

beta = 100 is a margin of 1/(2 beta) = 0.005 in mean errors, a logit of 2.5 at beta of digits_dpo.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "ipo", "beta": 100.0})
  return config
