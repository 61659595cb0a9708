"""A small text-to-image model of emoji at 16x16 pixels, the base of all emoji configs.

    dmpo-jax train --config configs/emoji_reference.py --workdir runs/emoji/reference

Data, time and result: docs/emoji.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config() -> ConfigDict:
  """Convolutions at 16x16, cross-attention at 8x8; v-prediction with cosine betas."""
  config = default()
  config.model.unet = ConfigDict(
    {
      "_class_name": "UNet2DConditionModel",
      "sample_size": 16,
      "in_channels": 3,
      "out_channels": 3,
      "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
      "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
      "block_out_channels": (32, 64),
      "layers_per_block": 1,
      "cross_attention_dim": 64,
      "attention_head_dim": 4,
      "norm_num_groups": 8,
    }
  )
  config.model.text_encoder = ConfigDict(
    {
      "architectures": ("CLIPTextModel",),
      "model_type": "clip_text_model",
      "hidden_size": 64,
      "intermediate_size": 128,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "max_position_embeddings": 12,
      "hidden_act": "quick_gelu",
    }
  )
  config.model.scheduler = ConfigDict(
    {
      "_class_name": "DDIMScheduler",
      "beta_schedule": "squaredcos_cap_v2",
      "num_train_timesteps": 1000,
      "prediction_type": "v_prediction",
      "clip_sample": False,
      "set_alpha_to_one": False,
      "steps_offset": 1,
      "timestep_spacing": "trailing",
    }
  )
  config.trained = ("unet", "text_encoder")
  config.data = ConfigDict({"name": "image_captions", "folder": "data/emoji", "size": 16})
  config.loss.name = "sft"
  config.timesteps.name = "stratified"
  config.caption_dropout = 0.1
  config.batch_size = 32
  config.num_steps = 1400
  config.optimizer.learning_rate = 1.5e-3
  config.optimizer.warmup_steps = 100
  config.ema_decay = 0.995
  config.checkpoint.every = 200
  return config
