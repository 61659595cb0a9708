"""Linear-DPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_linear_dpo.py --workdir runs/linear_dpo \
      --config.pipeline=runs/reference/pipeline

beta and eta are those published for SD1.5: a pair saturates where its margin of errors is 0.025.
The reference is an EMA of the policy, as published, with the paper's default decay. A frozen one:
--config.reference.kind=frozen --config.reference.decay=0.0.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md, "Moving references" (not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss, and with a reference that moves."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "linear_dpo", "beta": 100.0, "eta": 1e-3, "clip": "code"})
  config.reference.kind, config.reference.decay = "ema", 0.995
  return config
