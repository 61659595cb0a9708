"""Diffusion-KTO on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_kto.py --workdir runs/kto \
      --config.pipeline=runs/reference/pipeline

The loss has no factor 1/2 before beta, so 500 corresponds to 1000 in digits_dpo. The baseline is a
mean over the global batch.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "kto", "beta": 500.0, "weight_w": 1.0, "weight_l": 1.0})
  return config
