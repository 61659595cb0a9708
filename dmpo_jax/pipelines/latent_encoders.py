"""The frozen encoders of a pipeline, as caching of latents and text embeddings runs them."""

import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmpo_jax import data, interop
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import families
from dmpo_jax.sampling.images import to_floats


def load(
  source: str, *, embeddings: bool, revision: str | None = None, variant: str | None = None
) -> interop.Pipeline:
  """A pipeline with the parameters of its encoders alone.

  Args:
    source: A folder, or the "owner/name" of a repository on the hub.
    embeddings: Whether text encoders are among them.
    revision: Branch, tag or commit of the repository.
    variant: Variant of the weights, see `interop.load_pipeline`.

  Returns:
    The pipeline.

  Raises:
    InputError: It cannot be read, or has no autoencoder.
  """
  options = {"revision": revision, "variant": variant}
  pipeline = families.build(families.load(source, components=(), **options))
  if pipeline.autoencoder is None:
    raise InputError(
      f"{source} denoises pixels, it has no autoencoder: there are no latents to cache; train on "
      'the converted folder with config.data.name="pairs"'
    )
  texts = pipeline.text_encoders if embeddings else ()
  return families.load(source, components=[pipeline.autoencoder, *texts], **options)


def make(
  pipeline: interop.Pipeline,
  *,
  embeddings: bool,
  pairs: int,
  devices: Sequence[jax.Device] | None = None,
) -> data.LatentEncoders:
  """The encoders, compiled for this host's devices, each of which takes a part of a batch.

  They compute in float32, as training on images does with config.dtype "float32".

  Args:
    pipeline: From `load`.
    embeddings: Whether captions are encoded.
    pairs: Pairs that a device takes at a time. The program of a device, and so every bit that it
      computes, depends on this number and not on the number of devices.
    devices: Devices to use; None: all of this process.

  Returns:
    `data.LatentEncoders`.

  Raises:
    InputError: A network is not supported.
  """
  devices = list(devices or jax.local_devices())
  mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
  sharded, replicated = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("data",), ()))
  functions = families.build(pipeline)
  params = jax.device_put(pipeline.params, replicated)

  def latents(params, images):
    posterior = functions.posterior(params, to_floats(images))
    return jnp.stack([x.astype(jnp.float32) for x in posterior], axis=1)  # [B, 2, h, w, Z]

  def text(params, ids):
    return {name: x.astype(jnp.float32) for name, x in functions.encode_text(params, ids).items()}

  def compiled(function):
    run = jax.jit(function, in_shardings=(replicated, sharded), out_shardings=sharded)
    return lambda x: run(params, jax.device_put(x, sharded))

  return data.LatentEncoders(
    fingerprint=families.encoder_fingerprint(pipeline, embeddings=embeddings),
    tokenize=functions.tokenize,
    latents=compiled(latents),
    text=compiled(text),
    pairs=pairs * len(devices),
    captions=2 * pairs * len(devices),
    channels=functions.image_channels,
  )


def check(examples: data.CachedLatents, pipeline: interop.Pipeline, trained: Sequence[str]) -> None:
  """Refuses cached latents of another pipeline, or ones that training would make stale.

  Args:
    examples: The cached pairs.
    pipeline: The run's pipeline, with its parameters.
    trained: Components that are trained.

  Raises:
    InputError: It names what differs.
  """
  functions = families.build(pipeline)
  if functions.autoencoder is None:
    raise InputError(
      "the pipeline denoises pixels, and config.data holds cached latents; "
      'config.data.name="pairs" reads images'
    )
  stale = [name for name in trained if name in functions.text_encoders]
  if examples.embeddings and stale:
    raise InputError(
      f"config.trained names {stale[0]!r}, whose cached embeddings would stay as they were; set "
      "config.data.embeddings=False: then the text encoders run in each step"
    )
  fingerprint = families.encoder_fingerprint(pipeline, embeddings=examples.embeddings)
  cached = {part: dict(examples.manifest[part]) for part in fingerprint}
  if not examples.embeddings:
    cached["encoders"] = {
      name: cached["encoders"][name]
      for name in fingerprint["encoders"]
      if name in cached["encoders"]
    }
  if different := differences(cached, json.loads(json.dumps(fingerprint))):
    raise InputError(
      "the latents were cached by another pipeline than config.pipeline; take that pipeline, or "
      f"cache them with this one:\n{describe(different, first='cached')}"
    )
