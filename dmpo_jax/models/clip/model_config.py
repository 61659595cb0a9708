"""The config of a whole CLIPModel, and of its image encoder: transformers' fields and defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmpo_jax.common.files import located
from dmpo_jax.models import config_fields
from dmpo_jax.models.clip import config as text_config
from dmpo_jax.models.clip.config import CLIPTextConfig

NAME = "CLIPModel"
VISION = "CLIPVisionModel"

VISION_DEFAULTS = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "image_size": 224,
  "patch_size": 32,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
}
VISION_CONSTANTS = {**text_config.CONSTANTS, "num_channels": 3}
# The dicts are read apart; the initial value of the scale is in the weights.
PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
IGNORED = text_config.IGNORED | {"logit_scale_init_value", "projection_dim", *PARTS}


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
  """The fields that shape the image encoder."""

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  image_size: int
  patch_size: int
  hidden_act: str
  layer_norm_eps: float


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """The fields that shape a CLIPModel; both encoders are projected to `projection_dim`."""

  text: CLIPTextConfig
  vision: CLIPVisionConfig
  projection_dim: int


def read(config: Mapping[str, Any]) -> CLIPConfig:
  """Reads transformers' config.json of a CLIPModel.

  Args:
    config: Its fields; absent ones have transformers' defaults. Where there is a
      `text_config_dict` or `vision_config_dict`, as in files of former versions, it is read with
      its own defaults, as in transformers.

  Returns:
    A `CLIPConfig`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.

  Source: transformers' CLIPConfig and CLIPModel (5.24).
  """
  values = config_fields.read(
    NAME, config, defaults={"projection_dim": 512}, constants={}, ignored=IGNORED
  )
  width = config_fields.check_count(NAME, "projection_dim", values["projection_dim"])
  with located("text_config"):
    fields = _part(config, "text_config")
    text = text_config.read(
      {**fields, "architectures": [text_config.NAME], "projection_dim": width}
    )
  with located("vision_config"):
    vision = _vision(_part(config, "vision_config"))
  return CLIPConfig(text, vision, width)


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The fields of one encoder."""
  for key in (f"{name}_dict", name):
    part = config.get(key)
    if part is None:
      continue
    if not isinstance(part, Mapping):
      raise config_fields.unsupported(NAME, key, part, "an object")
    return dict(part)
  return {}


def _vision(config: Mapping[str, Any]) -> CLIPVisionConfig:
  """The fields of the image encoder; raises InputError for those that are not supported."""
  values = config_fields.read(
    VISION,
    config,
    defaults=VISION_DEFAULTS,
    constants=VISION_CONSTANTS,
    ignored=text_config.IGNORED | {"eos_token_id", "projection_dim"},
    dropouts=text_config.DROPOUTS,
  )
  text_config.check_layers(VISION, values, ("image_size", "patch_size"))
  if values["patch_size"] > values["image_size"]:
    expected = f"at most image_size = {values['image_size']}"
    raise config_fields.unsupported(VISION, "patch_size", values["patch_size"], expected)
  return CLIPVisionConfig(**values)
