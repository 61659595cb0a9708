"""Diffusion-DPO on the pairs of digits_edit_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_edit_dpo.py --workdir runs/edit_dpo \
      --config.pipeline=runs/edit_reference/pipeline

Result: docs/editing.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_edit_dmpo


def get_config() -> ConfigDict:
  """digits_edit_dmpo with another loss."""
  config = digits_edit_dmpo.get_config()
  config.loss = ConfigDict({"name": "dpo", "beta": 1000.0, "label_smoothing": 0.0})
  return config
