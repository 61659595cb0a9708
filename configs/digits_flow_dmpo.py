"""DMPO by flow matching on handwritten digits, on the pairs of digits_dmpo.

    dmpo-jax train --config configs/digits_flow_dmpo.py --workdir runs/flow_dmpo \
      --config.pipeline=runs/flow_reference/pipeline

Result: docs/flow.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo


def get_config() -> ConfigDict:
  """Full fine-tuning of the transformer; text encoders and reference stay frozen."""
  config = digits_dmpo.get_config()
  config.pipeline = "runs/flow_reference/pipeline"
  config.timesteps = ConfigDict({"name": "logit_normal", "stratified": True})
  return config
