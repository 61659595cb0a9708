"""Diffusion-DPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_dpo.py --workdir runs/dpo \
      --config.pipeline=runs/reference/pipeline

Time: see configs/digits_dmpo.py. Result: docs/quickstart.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "dpo", "beta": 1000.0, "label_smoothing": 0.0})
  return config
