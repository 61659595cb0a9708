"""DMPO with the SDPO safeguard on the pairs of digits_dmpo, with the same budget.

    dmpo-jax train --config configs/digits_sdpo.py --workdir runs/sdpo \
      --config.pipeline=runs/reference/pipeline

The gradient of digits_dmpo's loss is scaled where it would raise the errors of the preferred
images; mu is the published one. `base` is the section of the wrapped loss:
--config.loss.base.beta=500 sets a key of it.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict({"name": "sdpo", "mu": 0.9, "base": config.loss})
  return config
