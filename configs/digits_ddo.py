"""A potential that prefers heavier strokes of digits, by direct distributional optimisation.

    dmpo-jax potential --config configs/digits_ddo.py --workdir runs/ddo \
      --config.pipeline=runs/quickstart/reference/pipeline
    dmpo-jax sample --pipeline runs/quickstart/reference/pipeline --potential runs/ddo/potential \
      --prompt "the digit seven" --out samples

An argument names the loss: --config configs/digits_ddo.py:kto
"""

from ml_collections import ConfigDict

from dmpo_jax.data.toy import digits
from dmpo_jax.training.potential.config import default

# Loss -> its numbers, beta and beta_prime.
LOSSES = {
  "rlhf": ({}, 0.5, 0.25),
  "dpo": ({"gamma": 0.5}, 0.05, 0.2),
  "kto": ({"gamma": 1.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}, 0.05, 0.05),
}


def get_config(loss: str = "dpo") -> ConfigDict:
  """The preference of digits_dmpo on samples of the reference, as the quickstart samples them."""
  config = default()
  config.pipeline = "runs/reference/pipeline"
  config.prompts = tuple(digits.captions(range(10)))
  config.samples.guidance = 2.0
  config.score.name = "ink"
  config.score.temperature = 0.03
  numbers, config.beta, config.weights.beta_prime = LOSSES[loss]
  config.loss = ConfigDict({"name": loss, **numbers})
  config.steps_per_loop = 120
  config.groups, config.group_size = 10, 24
  config.network.widths = (16, 32)
  config.drift.num_steps = 400
  config.drift.name = "log_h"
  return config
