"""The digits model aligned with Diffusion-KTO on the pairs of digits_dmpo, at the same budget.

    dmpo-jax train --config configs/digits_kto.py --workdir runs/kto \
      --config.pipeline=runs/reference/pipeline

beta has no factor 1/2 before it here, so 500 is the 1000 of the others. The baseline is a mean over
the whole batch, whatever the number of devices. The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "kto", "beta": 500.0, "weight_w": 1.0, "weight_l": 1.0})
  return config
