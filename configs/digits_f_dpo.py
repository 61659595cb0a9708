"""f-DPO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_f_dpo.py --workdir runs/f_dpo \
      --config.pipeline=runs/reference/pipeline

The divergence is Jensen-Shannon's; --config.loss.divergence=forward_kl sets another. inner_scale is
d = 8·8·1, and beta · inner_scale is beta of digits_dpo.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict(
    {
      "name": "f_dpo",
      "divergence": "js",
      "beta": 15.625,
      "inner_scale": 64.0,
      "divergence_alpha": 0.5,
    }
  )
  return config
