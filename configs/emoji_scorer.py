"""A scorer that is to learn which of two drawings of an emoji is the later revision.

    dmpo-jax train-scorer --config configs/emoji_scorer.py --workdir runs/emoji/scorer

Data, time and result: docs/emoji.md.
"""

from ml_collections import ConfigDict

from dmpo_jax.reward.config import default


def get_config() -> ConfigDict:
  """A CLIP of small width from random weights: 64x64 pixels in patches of 4.

  The text encoder reads one word: which drawing is later does not depend on the caption, and whole
  captions let the model memorise single pairs.
  """
  config = default()
  config.model = ConfigDict(
    {
      "projection_dim": 16,
      "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 3,
        "hidden_act": "quick_gelu",
      },
      "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 64,
        "patch_size": 4,
        "hidden_act": "quick_gelu",
      },
    }
  )
  config.data = ConfigDict(
    {"name": "pairs", "folder": "data/emoji_revisions", "size": 64, "flip": True}
  )
  config.shift = 4
  config.held_out.every = 100
  config.batch_size = 32
  config.num_steps = 1000
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.weight_decay = 0.1
  config.ema_decay = 0.99
  config.checkpoint.every = 100
  return config
