"""DMPO on edits of digits: the edit done and the rest kept is mostly preferred.

    dmpo-jax train --config configs/digits_edit_dmpo.py --workdir runs/edit_dmpo \
      --config.pipeline=runs/edit_reference/pipeline

Result: docs/editing.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with pairs of edits and their sources."""
  config = digits_dmpo.get_config()
  config.pipeline = "runs/edit_reference/pipeline"
  config.data = ConfigDict(
    {"name": "digit_edit_pairs", "num_pairs": 8000, "temperature": 0.25, "seed": 1}
  )
  config.caption_dropout = 0.0  # config.editing drops instructions and sources
  return config
