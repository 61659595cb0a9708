"""The hinge loss on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_hinge.py --workdir runs/hinge \
      --config.pipeline=runs/reference/pipeline

beta = 200 is a margin of 1/beta = 0.005 in mean errors, as in digits_ipo.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "hinge", "beta": 200.0})
  return config
