"""Networks, weights and inputs that both sides of the UNet benchmark share."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from dmpo_jax import interop, models


class Size(NamedTuple):
  """A network and the shapes of its inputs.

  Attributes:
    config: diffusers' config of the UNet.
    images: `[B, H, W, C]`.
    tokens: Length of the text embedding.
  """

  config: dict[str, Any]
  images: tuple[int, int, int, int]
  tokens: int


def two_levels(images: tuple[int, int, int, int], widths: tuple[int, int]) -> Size:
  """Network of two levels with attention on the first, for pixels or small latents."""
  config = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": images[-1],
    "out_channels": images[-1],
    "block_out_channels": widths,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
  }
  return Size(config, images, tokens=8)


def stable_diffusion(width: int, batch: int, pixels: int) -> Size:
  """SD1.5's UNet with another width: four levels, attention on three, eight heads, 77 tokens.

  Args:
    width: Channels of the finest level, 320 in SD1.5; a multiple of 32.
    batch: Images.
    pixels: Height and width of the four-channel latents, 64 in SD1.5.
  """
  config = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
    "cross_attention_dim": 768,
  }
  return Size(config, (batch, pixels, pixels, 4), tokens=77)


SIZES = {
  # The quickstart's network and batch, and a larger one: see docs/benchmarks.md.
  "small": two_levels((128, 8, 8, 1), (32, 64)),
  "middle": two_levels((8, 32, 32, 4), (64, 128)),
  "sd64": stable_diffusion(64, 2, 32),
  "sd128": stable_diffusion(128, 2, 32),
  "sd192": stable_diffusion(192, 2, 32),
  "sd320": stable_diffusion(320, 1, 32),
}

SDXL = {
  "_class_name": "UNet2DConditionModel",
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 256,
  "attention_head_dim": (5, 10, 20),
  "block_out_channels": (320, 640, 1280),
  "cross_attention_dim": 2048,
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  "projection_class_embeddings_input_dim": 2816,
  "transformer_layers_per_block": (1, 2, 10),
  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
  "use_linear_projection": True,
}


def write(size: Size, folder: pathlib.Path) -> None:
  """Writes the files of both sides: the network in diffusers' format, and inputs.npz.

  Args:
    size: The network and the shapes of its inputs.
    folder: An existing folder.
  """
  rng = np.random.default_rng(0)
  params = models.build(size.config).init(jax.random.key(0))
  (folder / "config.json").write_text(json.dumps(size.config))
  save_file(interop.to_torch_state(params), folder / "diffusion_pytorch_model.safetensors")
  batch, width = size.images[0], size.config["cross_attention_dim"]
  np.savez(
    folder / "inputs.npz",
    images=rng.standard_normal(size.images, np.float32),
    timesteps=rng.integers(0, 1000, batch, dtype=np.int32),
    context=rng.standard_normal((batch, size.tokens, width), np.float32),
  )
