"""MaPO on the pairs of digits_dmpo, without a reference.

    dmpo-jax train --config configs/digits_mapo.py --workdir runs/mapo \
      --config.pipeline=runs/reference/pipeline

The values are those of the published code. For small errors num_timesteps · snr = 500 acts as beta,
which is 1000 in digits_dpo. The form of the paper: {"name": "mapo", "form": "paper", "beta": 8.0}.

Time: see configs/digits_dmpo.py. Result: docs/objectives.md (one run, not tuned).
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """digits_dmpo with another loss."""
  config = digits_dmpo.get_config()
  config.loss = ConfigDict(
    {"name": "mapo", "beta": 0.1, "snr": 0.5, "num_timesteps": 1000, "form": "code"}
  )
  return config
