"""The configs of the digits at a size that compiles in seconds."""

from ml_collections import ConfigDict

from dmpo_jax.configs import digits_dmpo, digits_reference


def reference_config() -> ConfigDict:
  """The reference's config with the smallest network of its kind."""
  config = digits_reference.get_config()
  config.model.unet.update(
    {
      "block_out_channels": (8, 8),
      "cross_attention_dim": 8,
      "norm_num_groups": 4,
      "attention_head_dim": 2,
    }
  )
  config.model.text_encoder.update(
    {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
  )
  config.batch_size, config.num_steps = 4, 6
  config.optimizer.warmup_steps = 2
  config.checkpoint.every = 2
  config.num_devices = 1
  return config


def pairs_config(pipeline: str) -> ConfigDict:
  """A DMPO config that starts from a pipeline folder."""
  config = digits_dmpo.get_config()
  config.pipeline = str(pipeline)
  config.data.num_pairs = 16
  config.batch_size, config.num_steps = 4, 6
  config.optimizer.warmup_steps = 2
  config.checkpoint.every = 2
  config.num_devices = 1
  return config


def smallest_config() -> ConfigDict:
  """The reference's config with one level and attention in the middle alone."""
  config = reference_config()
  config.model.unet.update(
    {
      "down_block_types": ("DownBlock2D",),
      "up_block_types": ("UpBlock2D",),
      "block_out_channels": (8,),
    }
  )
  return config
