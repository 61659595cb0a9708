"""The digits model aligned with MaPO on the pairs of digits_dmpo, without a reference.

    dmpo-jax train --config configs/digits_mapo.py --workdir runs/mapo \
      --config.pipeline=runs/reference/pipeline

The published values of the released form: for small errors T·s = 500 stands where the others have
beta = 1000. The form of the paper is {"name": "mapo", "form": "paper", "beta": 8.0}. The settings
were not tuned.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Everything but the objective is as in digits_dmpo."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict(
    {"name": "mapo", "beta": 0.1, "snr": 0.5, "num_timesteps": 1000, "form": "code"}
  )
  config.reference = False
  return config
