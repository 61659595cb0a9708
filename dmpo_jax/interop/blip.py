"""ImageReward's checkpoint: BLIP's names, and a config from the shapes of its tensors."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from dmpo_jax.common.files import located
from dmpo_jax.errors import InputError
from dmpo_jax.interop import read_weights, state_dict
from dmpo_jax.interop.clip import open_tensors
from dmpo_jax.interop.read_weights import Entry

PREFIX = "blip."
# Parts of BLIP that ImageReward does not use.
UNUSED = ("vision_proj.", "text_proj.")
PATCHES = "visual_encoder.patch_embed.proj.weight"
POSITIONS = "visual_encoder.pos_embed"
WORDS = "text_encoder.embeddings.word_embeddings.weight"
TEXT_POSITIONS = "text_encoder.embeddings.position_embeddings.weight"
# All BLIP and BERT models have heads of 64 channels.
HEAD_WIDTH = 64


def load_image_reward(
  file: str | os.PathLike, *, dtype: Any = "float32"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads ImageReward.

  Args:
    file: `ImageReward.pt`, or safetensors with the same names.
    dtype: Dtype of the parameters: "float32", "float16", "bfloat16", or None for the stored one.

  Returns:
    A config for `models.build`, and the parameter tree.

  Raises:
    InputError: The file is missing or damaged, or holds another network.
  """
  dtype = state_dict.float_name(dtype)
  with located(file):
    config, entries = convert(open_tensors(file))
  return config, read_weights.read_entries(entries, config, file, dtype=dtype)


def convert(entries: Mapping[str, Entry]) -> tuple[dict[str, Any], dict[str, Entry]]:
  """Config and tensors of ImageReward from those of its file.

  Args:
    entries: Tensors by the names in the file.

  Returns:
    The config, and tensors by our torch names.

  Raises:
    InputError: A tensor that tells a size is missing.
  """
  renamed = {name.removeprefix(PREFIX): entry for name, entry in entries.items()}
  renamed = {name: entry for name, entry in renamed.items() if not name.startswith(UNUSED)}
  first = ("visual_encoder.blocks.0.mlp.fc1.weight", "text_encoder.encoder.layer.0")
  inner = f"{first[1]}.intermediate.dense.weight"
  required = (PATCHES, POSITIONS, WORDS, TEXT_POSITIONS, first[0], inner)
  if missing := [name for name in required if name not in renamed]:
    raise InputError(f"the file does not hold ImageReward: there is no {', '.join(missing)}")
  shapes = {name: renamed[name].shape for name in required}
  if len(shapes[PATCHES]) != 4 or len(shapes[POSITIONS]) != 3:
    raise InputError(f"{PATCHES} is {list(shapes[PATCHES])}, expected [D, 3, P, P]")
  patch, width = shapes[PATCHES][-1], shapes[PATCHES][0]
  text_width = shapes[WORDS][-1]
  return {
    "architectures": ["ImageReward"],
    "image_size": math.isqrt(shapes[POSITIONS][1] - 1) * patch,
    "patch_size": patch,
    "vision_width": width,
    "vision_layers": _count(renamed, r"visual_encoder\.blocks\.(\d+)\."),
    "vision_heads": width // HEAD_WIDTH,
    "vision_mlp": shapes[first[0]][0],
    "vocab_size": shapes[WORDS][0],
    "max_positions": shapes[TEXT_POSITIONS][0],
    "text_width": text_width,
    "text_layers": _count(renamed, r"text_encoder\.encoder\.layer\.(\d+)\."),
    "text_heads": text_width // HEAD_WIDTH,
    "text_mlp": shapes[inner][0],
  }, renamed


def _count(names: Mapping[str, Any], pattern: str) -> int:
  """The number of layers whose names match."""
  return len({match[1] for name in names if (match := re.match(pattern, name))})
