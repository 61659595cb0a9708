"""The autoencoder of latent pipelines, as functions over the parameters of all components."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.pipelines.interface import Params

AUTOENCODER = "vae"


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """The autoencoder's functions over the parameters of all components.

  Attributes:
    posterior: See `TextToImage`.
    scale: See `TextToImage`.
    decode: See `TextToImage`.
    downscale: Pixels per latent along height and width.
    channels: Channels of the images.
    latent_channels: Channels of the latents.
  """

  posterior: Callable[[Params, jax.Array], models.Posterior]
  scale: Callable[[jax.Array], jax.Array]
  decode: Callable[[Params, jax.Array], jax.Array]
  downscale: int
  channels: int
  latent_channels: int


def make(
  config: Mapping[str, Any], dtype: Any, compute: models.Compute, *, patch: int = 1
) -> Autoencoder:
  """The functions of an autoencoder.

  It computes in float32, unless its config sets force_upcast to false.

  Args:
    config: Its config.json.
    dtype: Compute dtype where force_upcast is false.
    compute: How it computes.
    patch: Latents along a side of the denoiser's patches.

  Returns:
    `Autoencoder`.

  Raises:
    InputError: A value in the config is not supported.
  """
  network, fields = models.build_autoencoder(config, compute=compute), vae_config.read(config)
  dtype = jnp.float32 if config.get("force_upcast", True) else dtype
  multiple = network.downscale * patch

  def posterior(params: Params, images: jax.Array) -> models.Posterior:
    height, width = images.shape[1:3]
    if height % multiple or width % multiple:
      raise InputError(
        f"the images are {height}x{width}; height and width must be multiples of {multiple}, the "
        f"pixels of a {'latent' if patch == 1 else 'patch'}"
      )
    return network.encode(params[AUTOENCODER], images, dtype=dtype)

  def decode(params: Params, latents: jax.Array) -> jax.Array:
    images = network.decode(params[AUTOENCODER], network.unscale(latents), dtype=dtype)
    return images.astype(jnp.float32)

  return Autoencoder(
    posterior,
    network.scale,
    decode,
    network.downscale,
    fields.in_channels,
    fields.latent_channels,
  )
