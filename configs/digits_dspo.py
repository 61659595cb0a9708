"""The digits model aligned with DSPO on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_dspo.py --workdir runs/dspo \
      --config.pipeline=runs/reference/pipeline

beta is the published one, at which the loss is next to supervised fine-tuning (see its docstring).
The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "dspo", "beta": 0.001})
  return config
