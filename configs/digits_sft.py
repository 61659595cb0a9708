"""The digits model fine-tuned on the preferred images of digits_dmpo, without a reference.

    dmpo-jax train --config configs/digits_sft.py --workdir runs/sft \
      --config.pipeline=runs/reference/pipeline

The baseline that learns from preferred images alone: what an objective gains beyond it comes from
the comparison. The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "sft"})
  config.reference = False
  return config
