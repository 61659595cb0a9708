"""From the config.json of an autoencoder to functions: encode, decode, and the units of latents."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import fsdp, trees
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.init import init_params
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.models.vae import model as vae


class Moments(NamedTuple):
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
      `Moments` `[B, H // downscale, W // downscale, Z]`; rows and columns beyond a multiple of
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

  encode: Callable[..., Moments]
  decode: Callable[..., jax.Array]
  init: Callable[[jax.Array], trees.Tree]
  scale: Callable[[jax.Array], jax.Array]
  unscale: Callable[[jax.Array], jax.Array]
  downscale: int


def build_autoencoder(config: Mapping[str, Any], *, compute: Compute = Compute()) -> Autoencoder:
  """Builds the autoencoder that diffusers' config.json describes.

  Args:
    config: Its fields, `_class_name` "AutoencoderKL"; absent ones have diffusers' defaults.
    compute: Attention kernels, rematerialisation and sharding.

  Returns:
    An `Autoencoder` of pure functions; parameters are nested dicts with string keys, named as in
    diffusers.

  Raises:
    InputError: The config is another network's, or a field or its value is not supported.
  """
  name = config.get("_class_name")
  if name != vae_config.NAME:
    raise InputError(f"_class_name = {name!r} is no autoencoder; expected {vae_config.NAME!r}")
  module = vae.AutoencoderKL(vae_config.read(config), compute)
  read = module.config
  graph, state = nnx.split(module)
  shapes = trees.string_keys(nnx.to_pure_dict(state))
  downscale = 2 ** (len(read.block_out_channels) - 1)

  def restore(params: trees.Tree) -> vae.AutoencoderKL:
    return nnx.merge(graph, trees.int_keys(params))

  def computed_in(dtype) -> jnp.dtype:
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if read.force_upcast and dtype == jnp.float16 else dtype

  def encode(params, images, *, dtype=jnp.float32):
    _check("images", images, read.in_channels, downscale)

    def run(params, images):
      moments = restore(params).encode(images.astype(computed_in(dtype)))
      return Moments(*(m.astype(dtype) for m in moments))

    return fsdp.shard_map(compute.placement, run)(params, images)

  def decode(params, z, *, dtype=jnp.float32):
    _check("z", z, read.latent_channels, 1)

    def run(params, z):
      return restore(params).decode(z.astype(computed_in(dtype))).astype(dtype)

    return fsdp.shard_map(compute.placement, run)(params, z)

  return Autoencoder(
    encode=encode,
    decode=decode,
    init=lambda key: init_params(shapes, key),
    scale=lambda z: (z - read.shift_factor) * read.scaling_factor,
    unscale=lambda z: z / read.scaling_factor + read.shift_factor,
    downscale=downscale,
  )


def draw_latents(moments: Moments, noise: jax.Array) -> jax.Array:
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
