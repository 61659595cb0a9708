"""DSPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_dspo.py --workdir runs/dspo \
      --config.pipeline=runs/reference/pipeline

beta is the published one. At this value the loss is nearly supervised fine-tuning (see
losses/dspo.py).

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "dspo", "beta": 0.001})
  return config
