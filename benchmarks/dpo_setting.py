"""Sizes, weights, batch and noise that both sides of the train step benchmark share."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dmpo_jax import interop
from dmpo_jax.configs import digits_reference
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, sample_noise
from dmpo_jax.training.config import default

CAPTIONS = [f"the digit {word}" for word in ("one", "two", "three", "four", "five", "six", "seven")]
# Steps with common noise, in which both sides must take the same step.
CHECKED_STEPS = 3


class Size(NamedTuple):
  """A benchmark's networks and batch.

  Attributes:
    pairs: Preference pairs in a batch; the networks see twice as many images.
    model: diffusers' and transformers' configs of unet, text_encoder and scheduler.
    dtype: Compute dtype of the networks, float32 or bfloat16; parameters are float32.
    remat: Our rematerialisation policy.
  """

  pairs: int
  model: dict[str, dict[str, Any]]
  dtype: str = "float32"
  remat: str = "none"


def latent_size(
  pairs: int, pixels: int, channels: tuple[int, ...], layers: int, tokens: int, context: int
) -> Size:
  """Stable Diffusion's UNet with other widths: attention on all levels but the deepest.

  Args:
    pairs: Preference pairs in a batch.
    pixels: Height and width of the four-channel latents.
    channels: Width of each level.
    layers: Residual layers per level of the down path (one more in the up path).
    tokens: Length of the text encoder's context.
    context: Width of the text encoder.
  """
  down = ["CrossAttnDownBlock2D"] * (len(channels) - 1) + ["DownBlock2D"]
  up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(channels) - 1)
  model = _digits_model()
  model["unet"].update(
    sample_size=pixels,
    in_channels=4,
    out_channels=4,
    down_block_types=down,
    up_block_types=up,
    block_out_channels=list(channels),
    layers_per_block=layers,
    cross_attention_dim=context,
    attention_head_dim=8,
    norm_num_groups=32,
  )
  model["text_encoder"].update(
    hidden_size=context,
    intermediate_size=4 * context,
    num_attention_heads=4,
    max_position_embeddings=tokens,
  )
  return Size(pairs, model)


def sd15() -> Size:
  """Stable Diffusion 1.5 at 512 pixels: its UNet and its text encoder, without the VAE."""
  size = latent_size(4, 64, (320, 640, 1280, 1280), 2, tokens=77, context=768)
  size.model["text_encoder"].update(num_hidden_layers=12, num_attention_heads=12)
  return size


def _digits_model() -> dict[str, dict[str, Any]]:
  return digits_reference.get_config().model.to_dict()


SIZES = {
  # Networks and batch of the quickstart.
  "digits": lambda: Size(64, _digits_model()),
  "middle": lambda: latent_size(8, 16, (64, 128), 2, tokens=16, context=64),
  # Stable Diffusion's depth per level and its 77 tokens; 32x32 latents are images of 256 pixels.
  "large": lambda: latent_size(2, 32, (64, 128, 256), 2, tokens=77, context=128),
  "sd15": sd15,
}


def config(size: Size) -> ConfigDict:
  """Config of the step: Diffusion-DPO of the UNet with EMA, frozen text encoder."""
  result = default()
  result.model = ConfigDict(size.model)
  result.loss = ConfigDict({"name": "dpo", "beta": 100.0})
  result.caption_dropout = 0.1
  result.batch_size, result.dtype, result.remat = size.pairs, size.dtype, size.remat
  result.optimizer.learning_rate = 1e-4
  result.ema_decay = 0.99
  return result


def write(size: Size, folder: pathlib.Path) -> None:
  """Writes the files of both sides: policy/, reference/, batch.npz and noise.npz.

  All parameters are random, including biases and scales, and the policy differs from the reference,
  so that a swapped name or network changes the loss.

  Args:
    size: The benchmark's networks and batch.
    folder: An existing folder.
  """
  settings = config(size)
  pipeline = setup.load_pipeline(settings, CAPTIONS)
  rng = np.random.default_rng(0)
  reference = {name: _shifted(params, 0.1, rng) for name, params in pipeline.params.items()}
  policy = {**reference, "unet": _shifted(reference["unet"], 0.01, rng)}
  for name, params in {"reference": reference, "policy": policy}.items():
    interop.save_pipeline(
      folder / name,
      interop.pixel_pipeline(pipeline.configs, params, pipeline.tokenizers["tokenizer"]),
    )
  ours, unet = setup.make_objective(settings, pipeline), size.model["unet"]
  shape = (size.pairs, 2, unet["sample_size"], unet["sample_size"], unet["in_channels"])
  captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(size.pairs)]
  batch = Batch(
    pixels=rng.uniform(-1, 1, shape).astype(np.float32),  # [pairs, 2, H, W, C]
    text=ours.pipeline.tokenize(captions)[0],
    example_id=np.arange(size.pairs, dtype=np.uint32),
  )
  samples = [
    sample_noise(ours.seed, step, ours.prepare(batch, step), shape[2:], ours.caption_dropout)
    for step in range(CHECKED_STEPS)
  ]
  arrays = {"pixels": batch.pixels, "example_id": batch.example_id, **batch.text}
  null = {f"null_{name}": np.asarray(ids) for name, ids in ours.null_text.items()}
  np.savez(folder / "batch.npz", **arrays, **null)
  stacked = {name: np.stack([getattr(s, name) for s in samples]) for name in samples[0]._fields}
  np.savez(folder / "noise.npz", **stacked)


def _shifted(params: dict, scale: float, rng: np.random.Generator) -> dict:
  """Parameters plus normal noise of `scale` times their root mean square (1 for zeros)."""
  if isinstance(params, dict):
    return {name: _shifted(child, scale, rng) for name, child in params.items()}
  array = np.asarray(params)
  size = float(np.sqrt(np.mean(np.square(array)))) or 1.0
  return array + np.float32(scale * size) * rng.standard_normal(array.shape, np.float32)
