"""The config of ImageReward's network: sizes of BLIP's two encoders."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmpo_jax.models import config_fields

NAME = "ImageReward"

# BLIP ViT-L at 224 pixels, and BERT-base with cross-attention.
DEFAULTS = {
  "image_size": 224,
  "patch_size": 16,
  "vision_width": 1024,
  "vision_layers": 24,
  "vision_heads": 16,
  "vision_mlp": 4096,
  "vocab_size": 30524,
  "max_positions": 512,
  "text_width": 768,
  "text_layers": 12,
  "text_heads": 12,
  "text_mlp": 3072,
}


@dataclasses.dataclass(frozen=True)
class ImageRewardConfig:
  """The fields that shape the network."""

  image_size: int
  patch_size: int
  vision_width: int
  vision_layers: int
  vision_heads: int
  vision_mlp: int
  vocab_size: int
  max_positions: int
  text_width: int
  text_layers: int
  text_heads: int
  text_mlp: int


def read(config: Mapping[str, Any]) -> ImageRewardConfig:
  """Reads a config, of which `interop.blip` makes one from the shapes of weights.

  Args:
    config: Fields of `DEFAULTS`, all of them optional, and `architectures`.

  Returns:
    An `ImageRewardConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.
  """
  values = config_fields.read(
    NAME, config, defaults=DEFAULTS, constants={}, ignored=frozenset({"architectures"})
  )
  for field, value in values.items():
    most = config_fields.MAX_LAYERS if field.endswith("layers") else config_fields.MAX_SIZE
    config_fields.check_count(NAME, field, value, most=most)
  for part in ("vision", "text"):
    width, heads = values[f"{part}_width"], values[f"{part}_heads"]
    if width % heads:
      expected = f"a divisor of {part}_width = {width}"
      raise config_fields.unsupported(NAME, f"{part}_heads", heads, expected)
  return ImageRewardConfig(**values)
