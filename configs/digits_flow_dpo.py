"""Diffusion-DPO by flow matching on the pairs of digits_flow_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_flow_dpo.py --workdir runs/flow_dpo \
      --config.pipeline=runs/flow_reference/pipeline

Result: docs/flow.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_flow_dmpo


def get_config() -> ConfigDict:
  """digits_flow_dmpo with another loss."""
  config = digits_flow_dmpo.get_config()
  config.loss = ConfigDict({"name": "dpo", "beta": 1000.0, "label_smoothing": 0.0})
  return config
