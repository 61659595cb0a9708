"""From a text-to-image pipeline of Stable Diffusion to one that edits images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import interop
from dmpo_jax.errors import InputError, short
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.pipelines import stable_diffusion_parts as parts

UNET = "unet"


def widen(pipeline: interop.Pipeline) -> interop.Pipeline:
  """The same pipeline with a UNet that reads the image to edit beside the noisy one.

      conv_in'([x_t, source]) = W * x_t + 0 * source + b

  so that the first predictions are those of the text-to-image pipeline, whatever the source.

  Args:
    pipeline: A pipeline of Stable Diffusion or SDXL; its UNet need not be loaded.

  Returns:
    The pipeline, of the class that `interop.EDITING` names. Its scheduler's config is the one that
    diffusers uses with the old class.

  Raises:
    InputError: The pipeline edits images already, or is of another class.

  Source: arXiv 2211.09800, section 3.2.
  """
  kind, unet = pipeline.model_index.get("_class_name"), unet_config.read(pipeline.configs[UNET])
  channels = unet.out_channels
  if kind not in interop.EDITING or unet.in_channels != channels:
    raise InputError(
      f"config.widen makes an editing pipeline of {' or '.join(interop.EDITING)}; this is "
      f"{short(kind)}, whose UNet reads {unet.in_channels} channels and returns {channels}; leave "
      "config.widen out for one that edits images already"
    )
  configs = {
    **pipeline.configs,
    UNET: {**pipeline.configs[UNET], "in_channels": 2 * channels},
    interop.SCHEDULER: dict(parts.scheduler(pipeline)),
  }
  params = dict(pipeline.params)
  if UNET in params:
    conv = params[UNET]["conv_in"]
    params[UNET] = {**params[UNET], "conv_in": {**conv, "kernel": _with_zeros(conv["kernel"])}}
  index = {**pipeline.model_index, "_class_name": interop.EDITING[kind]}
  if kind == "StableDiffusionXLPipeline":  # its editing class has none of these, not even as null
    for name in ("image_encoder", "feature_extractor"):
      if index.get(name, [None, None])[1] is not None:
        raise InputError(f"{interop.INDEX}: {interop.EDITING[kind]} has no {name}; leave it out")
      index.pop(name, None)
  return dataclasses.replace(pipeline, model_index=index, configs=configs, params=params)


def _with_zeros(kernel: Any) -> Any:
  """A kernel `[h, w, Z, C]` as `[h, w, 2 Z, C]`."""
  if isinstance(kernel, jax.ShapeDtypeStruct):  # a run that is planned has shapes alone
    height, width, channels, features = kernel.shape
    return jax.ShapeDtypeStruct((height, width, 2 * channels, features), kernel.dtype)
  library = jnp if isinstance(kernel, jax.Array) else np
  return library.concatenate([kernel, library.zeros_like(kernel)], axis=2)
