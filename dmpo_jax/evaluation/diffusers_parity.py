"""Does an exported pipeline do in torch diffusers what it does here?"""

import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np

from dmpo_jax.errors import InputError


def compare_with_diffusers(
  folder: pathlib.Path,
  prompts: Sequence[str],
  noise: np.ndarray,
  images: np.ndarray,
  *,
  num_steps: int,
  guidance: float,
) -> dict | None:
  """Samples a pixel-space pipeline with torch diffusers and compares image by image.

  Args:
    folder: A pipeline folder without a VAE.
    prompts: One per image, `[N]`.
    noise: The initial noise of each, `[N, H, W, C]`.
    images: What was sampled here from the same noise, `[N, H, W, C]`.
    num_steps: Steps of the solver.
    guidance: Scale of classifier-free guidance.

  Returns:
    {"images", "max_abs_difference", "diffusers_version", "torch_version"}, or None where torch is
    not installed.

  Raises:
    InputError: diffusers' images have another shape.
  """
  if importlib.util.find_spec("torch") is None:
    return None
  import diffusers
  import torch
  from diffusers.utils import logging

  logging.set_verbosity_error()
  logging.disable_progress_bar()
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, vae=None)
  pipeline.set_progress_bar_config(disable=True)
  latents = torch.tensor(np.moveaxis(noise, -1, 1))
  with torch.inference_mode():
    found = pipeline(
      list(prompts),
      latents=latents,
      num_inference_steps=num_steps,
      guidance_scale=guidance,
      output_type="latent",
    ).images
  found = np.moveaxis(np.asarray(found), 1, -1)  # [N, H, W, C]
  if found.shape != images.shape:
    raise InputError(f"diffusers drew images of shape {found.shape}, expected {images.shape}")
  return {
    "images": len(images),
    "max_abs_difference": float(np.abs(found - images).max()),
    "diffusers_version": diffusers.__version__,
    "torch_version": torch.__version__,
  }
