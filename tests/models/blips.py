"""ImageReward in torch, of transformers' parts of BLIP, with the names of its checkpoint."""

import re

import torch
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from tests.models import torch_map

TINY = {
  "architectures": ["ImageReward"],
  "image_size": 16,
  "patch_size": 4,
  "vision_width": 128,
  "vision_layers": 2,
  "vision_heads": 2,
  "vision_mlp": 40,
  "vocab_size": 60,
  "max_positions": 40,
  "text_width": 64,
  "text_layers": 2,
  "text_heads": 1,
  "text_mlp": 48,
}
FULL = {"architectures": ["ImageReward"]}  # BLIP ViT-L and BERT-base

VISION = [
  (r"embeddings\.class_embedding", "cls_token"),
  (r"embeddings\.position_embedding", "pos_embed"),
  (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
  (r"encoder\.layers\.(\d+)\.self_attn\.projection\.", r"blocks.\1.attn.proj."),
  (r"encoder\.layers\.(\d+)\.self_attn\.", r"blocks.\1.attn."),
  (r"encoder\.layers\.(\d+)\.layer_norm", r"blocks.\1.norm"),
  (r"encoder\.layers\.", "blocks."),
  (r"post_layernorm\.", "norm."),
]


class Torch(torch.nn.Module):
  """ImageReward's network."""

  def __init__(self, config):
    super().__init__()
    shared = {"hidden_act": "gelu"}
    vision = BlipVisionConfig(
      **shared,
      hidden_size=config["vision_width"],
      intermediate_size=config["vision_mlp"],
      num_hidden_layers=config["vision_layers"],
      num_attention_heads=config["vision_heads"],
      image_size=config["image_size"],
      patch_size=config["patch_size"],
      layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
      **shared,
      vocab_size=config["vocab_size"],
      hidden_size=config["text_width"],
      encoder_hidden_size=config["vision_width"],
      intermediate_size=config["text_mlp"],
      num_hidden_layers=config["text_layers"],
      num_attention_heads=config["text_heads"],
      max_position_embeddings=config["max_positions"],
      layer_norm_eps=1e-12,
      is_decoder=True,  # it has cross-attention
      bos_token_id=1,
      pad_token_id=0,
      eos_token_id=2,
      sep_token_id=2,
    )
    self.vision = BlipVisionModel(vision)
    self.text = BlipTextModel(text, add_pooling_layer=False)
    sizes = (config["text_width"], 1024, 128, 64, 16, 1)
    layers = []
    for i in range(5):
      layers.append(torch.nn.Linear(sizes[i], sizes[i + 1]))
      layers += [torch.nn.Dropout()] * (i < 3)
    self.mlp = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*layers)})

  def forward(self, images, ids, mask):
    image = self.vision(images).last_hidden_state
    states = self.text(
      input_ids=ids,
      attention_mask=mask,
      encoder_hidden_states=image,
      encoder_attention_mask=torch.ones(image.shape[:-1], dtype=torch.long),
      is_decoder=False,
    ).last_hidden_state
    return self.mlp["layers"](states[:, 0])[:, 0]

  def named_state(self):
    """Its tensors by the names of ImageReward.pt."""
    state = {}
    for name, tensor in self.state_dict().items():
      part, _, rest = name.partition(".")
      if part == "vision":
        for pattern, new in VISION:
          rest, count = re.subn(f"^{pattern}", new, rest)
          if count:
            break
        name = f"blip.visual_encoder.{rest}"
      elif part == "text":
        name = f"blip.text_encoder.{rest}"
      state[name] = tensor
    return state


def make(config=TINY):
  """A random network."""
  return torch_map.randomise(Torch(config))
