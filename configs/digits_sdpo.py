"""The digits model aligned with DMPO under the SDPO safeguard, on the pairs of digits_dmpo.

    dmpo-jax train --config configs/digits_sdpo.py --workdir runs/sdpo \
      --config.pipeline=runs/reference/pipeline

The same objective as digits_dmpo, its gradient scaled where it would raise the preferred images'
errors; mu is the published one. Another objective inside is another section:
--config.loss.base.beta=500 sets a key of it. The settings were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "sdpo", "mu": 0.9, "base": config.loss})
  return config
