"""Sizes of CLIP models and a folder with random weights, for the benchmark of scorers."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from dmpo_jax import interop, models
from dmpo_jax.models import trees

NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class Size(NamedTuple):
  """A CLIP model and a batch.

  Attributes:
    config: The fields of transformers' config.json.
    batch: Images of a step.
  """

  config: dict[str, Any]
  batch: int


def clip(text: tuple, vision: tuple, width: int, patch: int, act: str, **sizes: int) -> dict:
  """A config; text and vision are (width, layers, heads, width of the MLP)."""
  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": width,
    "text_config": {**dict(zip(NAMES, text, strict=True)), "hidden_act": act},
    "vision_config": {**dict(zip(NAMES, vision, strict=True)), "patch_size": patch}
    | {"hidden_act": act, **sizes},
  }


SIZES = {
  "tiny": Size(clip((32, 2, 2, 64), (64, 2, 2, 128), 16, 8, "gelu", image_size=32), 4),
  "B/32": Size(clip((512, 12, 8, 2048), (768, 12, 12, 3072), 512, 32, "quick_gelu"), 16),
  "L/14": Size(clip((768, 12, 12, 3072), (1024, 24, 16, 4096), 768, 14, "quick_gelu"), 4),
  "H/14": Size(clip((1024, 24, 16, 4096), (1280, 32, 16, 5120), 1024, 14, "gelu"), 2),
}


def write(size: Size, folder: pathlib.Path) -> None:
  """Writes config.json, model.safetensors and images.npy, float32 `[B, S, S, 3]`."""
  (folder / "config.json").write_text(json.dumps(size.config))
  params = trees.flatten(models.build(size.config).init(jax.random.key(0)))
  state = {}
  while params:  # one copy of H/14's 3.9 GB is in memory, not two
    path, leaf = params.popitem()
    state |= interop.to_torch_state(trees.unflatten({path: leaf}))
  save_file(state, folder / "model.safetensors", {"format": "pt"})
  side = size.config["vision_config"].get("image_size", 224)
  images = np.random.default_rng(0).standard_normal((size.batch, side, side, 3), np.float32)
  np.save(folder / "images.npy", images)
