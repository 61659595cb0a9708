"""Stable Diffusion 3.5 medium with DMPO, by flow matching, on pairs from disk.

    dmpo-jax train --config configs/sd35_dmpo.py --workdir runs/sd35 \\
      --config.data.folder=data/pairs --config.mesh.fsdp=16 --config.grad_accumulation_steps=16

Not run at full size: time and result are unknown. `dmpo-jax plan` shows the memory that it needs on
a TPU slice (docs/plan.md). beta 2000 with a rate of 1e-6 is in the range of public recipes that
train the whole transformer of SD3 with Diffusion-DPO (docs/flow.md); DMPO is not published on flow
matching: alpha is that of its other recipes. On cached latents and text embeddings
(`dmpo-jax data cache-latents`): --config configs/sd35_dmpo.py:cached_latents
--config.data.folder=data/latents.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import sd15_dmpo


def get_config(data: str = "pairs") -> ConfigDict:
  """Full fine-tuning of the transformer; VAE, text encoders and reference stay frozen.

  Args:
    data: "pairs": images of a converted folder; "cached_latents": their cached latents.
  """
  config = sd15_dmpo.get_config(data)
  config.pipeline = "stabilityai/stable-diffusion-3.5-medium"
  config.loss = ConfigDict({"name": "dmpo", "beta": 2000.0, "alpha": 0.01})
  # The shift of the levels is the scheduler's, 3.
  config.timesteps = ConfigDict({"name": "logit_normal", "stratified": True})
  config.remat = "dots"
  config.caption_dropout = 0.1
  config.batch_size = 256
  config.num_steps = 2000
  config.optimizer.learning_rate = 1e-6
  config.optimizer.warmup_steps = 100
  config.checkpoint.every = 200
  return config
