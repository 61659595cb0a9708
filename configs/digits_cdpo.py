"""Conservative DPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_cdpo.py --workdir runs/cdpo \
      --config.pipeline=runs/reference/pipeline

label_smoothing is alpha of digits_dmpo: the same target, but the forward KL.

Time: see configs/digits_dmpo.py. Result: docs/quickstart.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "dpo", "beta": 1000.0, "label_smoothing": 0.01})
  return config
