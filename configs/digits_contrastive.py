"""FlowCPO's contrastive loss on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_contrastive.py --workdir runs/contrastive \
      --config.pipeline=runs/reference/pipeline

beta and weight_l are the published ones.

Time: see configs/digits_dmpo.py. Not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "contrastive", "beta": 0.5, "weight_l": 1.0})
  return config
