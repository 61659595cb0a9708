"""A pipeline's frozen networks as `data cache-latents` runs them.

This is the wall between the two: data/ knows files and arrays, here are the networks.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmpo_jax import data, interop
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import stable_diffusion
from dmpo_jax.pipelines.fingerprint import TEXT_ENCODERS, identity
from dmpo_jax.sampling import to_floats


def load(source: str, *, embeddings: bool) -> interop.Pipeline:
  """A pipeline with the networks alone that encode.

  Args:
    source: As for `interop.load_pipeline`.
    embeddings: Whether text encoders are among them.

  Returns:
    The pipeline.

  Raises:
    InputError: It cannot be read, or has no VAE.
  """
  known = interop.load_pipeline(source, components=())
  if "vae" not in known.configs:
    raise InputError(
      f"{source} denoises the images themselves, it has no VAE: there is nothing to encode; train "
      'on the converted folder with config.data.name="pairs"'
    )
  wanted = ("vae", *TEXT_ENCODERS) if embeddings else ("vae",)
  return interop.load_pipeline(source, components=[n for n in wanted if n in known.configs])


def make(
  pipeline: interop.Pipeline,
  *,
  embeddings: bool,
  pairs: int,
  devices: Sequence[jax.Device] | None = None,
) -> data.Encoders:
  """The networks, compiled for this host's devices, each of which takes a part of a batch.

  They compute in float32, as training on images does with config.dtype "float32".

  Args:
    pipeline: From `load`.
    embeddings: Whether captions are encoded.
    pairs: Pairs that a device takes at a time. The program of a device, and so every bit that it
      computes, depends on this number and not on how many devices there are.
    devices: Which devices; None: all of this process.

  Returns:
    `data.Encoders`.

  Raises:
    InputError: A network is not supported.
  """
  devices = list(devices or jax.local_devices())
  mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
  split, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("data",), ()))
  networks = stable_diffusion.make_networks(pipeline, "float32")
  params = jax.device_put(pipeline.params, whole)

  def moments(params, images):
    found = networks.moments(params, to_floats(images))
    return jnp.stack([m.astype(jnp.float32) for m in found], axis=1)  # [B, 2, h, w, Z]

  def text(params, ids):
    found = networks.text(params, tuple(ids[name] for name in sorted(ids)))
    names = {"encoder_hidden_states": "embeddings", "text_embeds": "pooled"}
    return {names[name]: x.astype(jnp.float32) for name, x in found.items()}

  def compiled(function):
    run = jax.jit(function, in_shardings=(whole, split), out_shardings=split)
    return lambda x: run(params, jax.device_put(x, split))

  return data.Encoders(
    identity=identity(pipeline, embeddings=embeddings),
    tokenize=functools.partial(stable_diffusion.tokenize, pipeline),
    moments=compiled(moments),
    text=compiled(text),
    pairs=pairs * len(devices),
    captions=2 * pairs * len(devices),
    channels=pipeline.configs["vae"].get("in_channels", 3),
  )
