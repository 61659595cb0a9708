"""Pure functions of an AutoencoderKL: encode, decode, and the scaling of latents."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.models.functional import Functional


class Posterior(NamedTuple):
  """A Gaussian over latents, independent per element, in the autoencoder's own units.

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
      `Posterior` `[B, H // downscale, W // downscale, Z]`; rows and columns beyond a multiple of
      downscale have little influence or none, as in diffusers.
    decode: `decode(params, z, *, dtype=float32)` with z `[B, h, w, Z]` in the autoencoder's own
      units returns images `[B, h * downscale, w * downscale, C]`, near [-1, 1] and not clipped.
    init: `init(key)` returns new parameters, a tree of float32 numpy arrays.
    scale: z -> (z - shift_factor) * scaling_factor, the latents that a UNet sees.
    unscale: Its inverse.
    downscale: Pixels per latent along height and width, 2**(levels - 1).

  dtype is that of the result, and of the computation unless it is float16 and the config's
  force_upcast is true (the default): such activations exceed float16, so the computation is in
  float32. Statistics of norms and the softmax always are.
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
      moments = vae.encode(images.astype(compute_dtype(dtype)))
      return Posterior(*(m.astype(dtype) for m in moments))

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


def sample_latents(moments: Posterior, noise: jax.Array) -> jax.Array:
  """Draws latents: mean + exp(log_variance / 2) noise.

  Args:
    moments: What `encode` returns, `[B, h, w, Z]`.
    noise: Standard normal, of the same shape.

  Returns:
    `[B, h, w, Z]` in the autoencoder's own units.

  Raises:
    InputError: The noise has another shape.

  Source: arXiv 1312.6114, section 2.4.
  """
  if noise.shape != moments.mean.shape:
    raise InputError(f"noise is {list(noise.shape)}, expected {list(moments.mean.shape)}")
  return moments.mean + jnp.exp(moments.log_variance / 2) * noise


def _check(name: str, x: jax.Array, channels: int, least: int) -> None:
  """Raises InputError unless x is `[B, H, W, channels]` with H and W of at least `least`."""
  if x.ndim != 4 or x.shape[-1] != channels or min(x.shape[1:3]) < least:
    expected = f"[B, H, W, {channels}] (channels last)"
    expected += f" with H and W of at least {least}" if least > 1 else ""
    raise InputError(f"{name} must be {expected}, got {list(x.shape)}")
