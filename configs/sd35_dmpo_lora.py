"""A LoRA for Stable Diffusion 3.5 medium with DMPO, by flow matching, on pairs from disk.

    dmpo-jax train --config configs/sd35_dmpo_lora.py --workdir runs/sd35 \\
      --config.data.folder=data/pairs

Not run at full size: time and result are unknown. beta 100 with a rate of 1e-4 to 3e-4, and a LoRA
of rank 32 with alpha 64, are the public recipes of Diffusion-DPO on flow matching; beta 2000 and
more go with the rates of configs/sd35_dmpo.py (docs/flow.md). DMPO is not published on flow
matching: alpha is that of its other recipes. On cached latents and text embeddings, which spare the
memory and the time of three text encoders (`dmpo-jax data cache-latents`): --config
configs/sd35_dmpo_lora.py:cached_latents --config.data.folder=data/latents.
"""

from ml_collections import ConfigDict

from dmpo_jax.configs import sd35_dmpo


def get_config(data: str = "pairs") -> ConfigDict:
  """A LoRA on both streams of the transformer's attention; the base network is the reference.

  Args:
    data: "pairs": images of a converted folder; "cached_latents": their cached latents.
  """
  config = sd35_dmpo.get_config(data)
  config.lora.rank, config.lora.alpha = 32, 64.0
  config.loss.beta = 100.0
  config.optimizer.learning_rate = 1e-4
  config.optimizer.weight_decay = 1e-4
  config.optimizer.warmup_steps = 50
  config.batch_size = 32
  config.num_steps = 1000
  config.checkpoint.every = 100
  return config
