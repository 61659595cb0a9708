"""Pure functions of an AutoencoderKL: encode, decode, and the scaling of latents."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.models.functional import Functional


class Posterior(NamedTuple):
  """The Gaussian posterior of unscaled latents, independent per element.

  Attributes:
    mean: `[B, h, w, Z]`.
    log_variance: `[B, h, w, Z]`, within [-30, 20].
  """

  mean: jax.Array
  log_variance: jax.Array


class Autoencoder(NamedTuple):
  """An autoencoder as functions.

  Attributes:
    encode: `encode(params, images, *, dtype=float32)` with images `[B, H, W, C]` in [-1, 1] returns
      a `Posterior` `[B, H // downscale, W // downscale, Z]`. Rows and columns beyond a multiple of
      downscale have little or no influence, as in diffusers.
    decode: `decode(params, z, *, dtype=float32)` with unscaled latents z `[B, h, w, Z]` returns
      images `[B, h * downscale, w * downscale, C]`, near [-1, 1] and not clipped.
    init: `init(key)` returns new parameters, a tree of float32 numpy arrays.
    scale: z -> (z - shift_factor) * scaling_factor, the latents that a UNet denoises.
    unscale: The inverse of scale.
    downscale: Pixels per latent along height and width, 2**(levels - 1).

  dtype is the dtype of the result and of the computation. With float16 and the config's
  force_upcast (true by default) the computation is in float32, because activations exceed float16.
  Statistics of norms and the softmax are always in float32.
  """

  encode: Callable[..., Posterior]
  decode: Callable[..., jax.Array]
  init: Callable[[jax.Array], trees.Tree]
  scale: Callable[[jax.Array], jax.Array]
  unscale: Callable[[jax.Array], jax.Array]
  downscale: int


def functions(network: Functional) -> Autoencoder:
  """Encoder, decoder and latent scaling of an AutoencoderKL."""
  config = network.config

  def compute_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if config.force_upcast and dtype == jnp.float16 else dtype

  def encode(params, images, *, dtype=jnp.float32):
    _check("images", images, config.in_channels, config.downscale)

    def run(vae, images):
      mean, log_variance = vae.encode(images.astype(compute_dtype(dtype)))
      return Posterior(mean.astype(dtype), log_variance.astype(dtype))

    return network.run(run, params, images)

  def decode(params, z, *, dtype=jnp.float32):
    _check("z", z, config.latent_channels, 1)

    def run(vae, z):
      return vae.decode(z.astype(compute_dtype(dtype))).astype(dtype)

    return network.run(run, params, z)

  return Autoencoder(
    encode=encode,
    decode=decode,
    init=network.init,
    scale=lambda z: (z - config.shift_factor) * config.scaling_factor,
    unscale=lambda z: z / config.scaling_factor + config.shift_factor,
    downscale=config.downscale,
  )


def sample_latents(posterior: Posterior, noise: jax.Array) -> jax.Array:
  """Latents sampled from a posterior: mean + exp(log_variance / 2) noise.

  Args:
    posterior: From `encode`, `[B, h, w, Z]`.
    noise: Standard normal, `[B, h, w, Z]`.

  Returns:
    Unscaled latents `[B, h, w, Z]`.

  Raises:
    InputError: The noise has another shape.

  Source: arXiv 1312.6114, section 2.4.
  """
  if noise.shape != posterior.mean.shape:
    raise InputError(f"noise is {list(noise.shape)}, expected {list(posterior.mean.shape)}")
  return posterior.mean + jnp.exp(posterior.log_variance / 2) * noise


def _check(name: str, x: jax.Array, channels: int, least: int) -> None:
  """Raises InputError unless x is `[B, H, W, channels]` with H and W of at least `least`."""
  if x.ndim != 4 or x.shape[-1] != channels or min(x.shape[1:3]) < least:
    expected = f"[B, H, W, {channels}] (channels last)"
    expected += f" with H and W of at least {least}" if least > 1 else ""
    raise InputError(f"{name} must be {expected}, got {list(x.shape)}")
