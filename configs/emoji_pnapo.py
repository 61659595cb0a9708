"""PNAPO on the pairs of emoji_dmpo: DPO on each image's own prior noise, beta by its score gap.

    dmpo-jax train --config configs/emoji_pnapo.py --workdir runs/emoji/pnapo

The pairs are of the pipeline's own samples, whose seeds and scores the records keep. beta is that
of emoji_dpo for pairs of very different scores; the unit of the gap is the temperature of the
labels in docs/emoji.md. Not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import emoji_dpo


def get_config() -> ConfigDict:
  """emoji_dpo with prior noise and a beta per pair."""
  config = emoji_dpo.get_config()
  config.data.prior_noise = True
  config.data.score_gaps = True
  config.beta.score_temperature = 0.01
  config.beta.decay_start = 50
  config.beta.decay_end = 100
  return config
