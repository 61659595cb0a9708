"""Supervised fine-tuning on the preferred images of digits_dmpo, without a reference.

    dmpo-jax train --config configs/digits_sft.py --workdir runs/sft \
      --config.pipeline=runs/reference/pipeline

The baseline: a loss that compares images should do better than this one.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "sft"})
  return config
