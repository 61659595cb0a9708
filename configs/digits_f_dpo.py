"""The digits model aligned with f-DPO on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_f_dpo.py --workdir runs/f_dpo \
      --config.pipeline=runs/reference/pipeline

The divergence is Jensen-Shannon's; others are set by --config.loss.divergence=forward_kl. The inner
scale is d = 8·8·1, and beta times it is the 1000 of digits_dpo. The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
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
