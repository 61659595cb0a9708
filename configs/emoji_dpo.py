"""Diffusion-DPO on the pairs of emoji_dmpo, with the same budget.

    dmpo-jax train --config configs/emoji_dpo.py --workdir runs/emoji/dpo

Data, time and result: docs/emoji.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import emoji_dmpo


def get_config() -> ConfigDict:
  """emoji_dmpo with another loss."""
  config = emoji_dmpo.get_config()
  config.loss = ConfigDict({"name": "dpo", "beta": 1000.0, "label_smoothing": 0.0})
  return config
