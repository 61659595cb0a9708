"""A small flow matching model of handwritten digits, the base of the configs digits_flow_*.

    dmpo-jax train --config configs/digits_flow_reference.py --workdir runs/flow_reference

Result: docs/flow.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config() -> ConfigDict:
  """Stable Diffusion 3.5's transformer and two CLIP text encoders at 8x8 pixels, without T5."""
  config = default()
  config.model = ConfigDict({"_class_name": "StableDiffusion3Pipeline"})
  config.model.transformer = ConfigDict(
    {
      "_class_name": "SD3Transformer2DModel",
      "sample_size": 8,
      "patch_size": 2,
      "in_channels": 1,
      "out_channels": 1,
      "num_layers": 4,
      "num_attention_heads": 4,
      "attention_head_dim": 16,
      "caption_projection_dim": 64,
      "joint_attention_dim": 64,
      "pooled_projection_dim": 64,
      "pos_embed_max_size": 4,
      "qk_norm": "rms_norm",
      "dual_attention_layers": (0,),
    }
  )
  for name, act in (("text_encoder", "quick_gelu"), ("text_encoder_2", "gelu")):
    config.model[name] = ConfigDict(
      {
        "architectures": ("CLIPTextModelWithProjection",),
        "model_type": "clip_text_model",
        "hidden_size": 32,
        "projection_dim": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "hidden_act": act,
      }
    )
  config.model.scheduler = ConfigDict(
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
  )
  config.trained = ("transformer", "text_encoder", "text_encoder_2")
  config.data.name = "digits"
  config.loss.name = "sft"
  config.timesteps = ConfigDict({"name": "logit_normal", "stratified": True})
  config.caption_dropout = 0.1
  config.batch_size = 64
  config.num_steps = 1000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 100
  config.ema_decay = 0.995
  config.checkpoint.every = 500
  return config
