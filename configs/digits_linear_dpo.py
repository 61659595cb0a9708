"""Linear-DPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_linear_dpo.py --workdir runs/linear_dpo \
      --config.pipeline=runs/reference/pipeline

beta and eta are those published for SD1.5: a pair saturates where its margin of errors is 0.025.

Time: see configs/digits_dmpo.py. Not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "linear_dpo", "beta": 100.0, "eta": 1e-3, "clip": "code"})
  return config
