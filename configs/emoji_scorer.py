"""A scorer that learns which of two drawings of an emoji is the later revision.

    dmpo-jax train-scorer --config configs/emoji_scorer.py --workdir runs/emoji/scorer

Data, time and result: docs/emoji.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.reward.config import default


def get_config() -> ConfigDict:
  """A CLIP of small width from random weights: 64x64 pixels in patches of 8."""
  config = default()
  config.model = ConfigDict(
    {
      "projection_dim": 64,
      "text_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "hidden_act": "quick_gelu",
      },
      "vision_config": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
      },
    }
  )
  config.data = ConfigDict(
    {"name": "pairs", "folder": "data/emoji_revisions", "size": 64, "flip": True}
  )
  config.shift = 4
  config.held_out.every = 100
  config.batch_size = 64
  config.num_steps = 1000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.weight_decay = 0.1
  config.ema_decay = 0.99
  config.checkpoint.every = 200
  return config
