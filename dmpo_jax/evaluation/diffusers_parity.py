"""Parity check of an exported pipeline with torch diffusers."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.errors import InputError


def compare_with_diffusers(
  folder: paths.Path,
  prompts: Sequence[str],
  noise: np.ndarray,
  images: np.ndarray,
  *,
  num_steps: int,
  guidance: float,
  **options: Any,
) -> dict | None:
  """Largest difference between our samples and those of torch diffusers, for a pixel pipeline.

  Args:
    folder: A pipeline folder without a VAE.
    prompts: One per image, N.
    noise: Initial noise of each image, `[N, H, W, C]`.
    images: Our samples from the same noise, `[N, H, W, C]`.
    num_steps: Steps of the solver.
    guidance: Scale of classifier-free guidance.
    **options: Further arguments of the pipeline's call in diffusers.

  Returns:
    {"images", "max_abs_difference", "diffusers_version", "torch_version"}, or None if torch is not
    installed.

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
  # A component that the index leaves out must be left out by name.
  index = diffusers.DiffusionPipeline.load_config(folder)
  absent = {name: None for name, value in index.items() if value == [None, None]}
  pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
  pipeline.set_progress_bar_config(disable=True)
  latents = torch.tensor(np.moveaxis(noise, -1, 1))
  with torch.inference_mode():
    theirs = pipeline(
      list(prompts),
      latents=latents,
      num_inference_steps=num_steps,
      guidance_scale=guidance,
      output_type="latent",
      **options,
    ).images
  theirs = np.moveaxis(np.asarray(theirs), 1, -1)  # [N, H, W, C]
  if theirs.shape != images.shape:
    raise InputError(f"diffusers sampled images of shape {theirs.shape}, expected {images.shape}")
  return {
    "images": len(images),
    "max_abs_difference": float(np.abs(theirs - images).max()),
    "diffusers_version": diffusers.__version__,
    "torch_version": torch.__version__,
  }
