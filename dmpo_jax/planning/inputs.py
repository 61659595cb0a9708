"""The form and the shapes of a train step's batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmpo_jax.errors import InputError, unknown
from dmpo_jax.pipelines import Params, TextToImage
from dmpo_jax.training.batch import Batch

# Forms of a batch: images, cached latents, or cached latents and text embeddings.
INPUTS = ("images", "latents", "latents_and_embeddings")
RENAMED_INPUTS = {"encoded": "latents_and_embeddings"}
# Data sets of single images; all others have pairs.
SINGLE_IMAGE_DATASETS = ("image_captions", "digits")


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Form and size of the examples in a batch.

  Attributes:
    kind: One of `INPUTS`: "images" (the step runs all encoders), "latents" (the step runs the text
      encoders) or "latents_and_embeddings" (the step runs no encoder).
    size: Height and width of the images in pixels.
    images: Number of images of an example: 2 for pairs, 1 for single images.
  """

  kind: str
  size: int
  images: int = 2


def inputs_from_config(
  config: ConfigDict, pipeline: TextToImage, kind: str = "", size: int = 0
) -> Inputs:
  """Returns the inputs of a config's data set.

  Args:
    config: A checked config.
    pipeline: The pipeline.
    kind: One of `INPUTS`, in place of the data set's; empty: the data set's.
    size: Height and width of the images in pixels, in place of the data set's; 0: the data set's
      or, if it has none, the pipeline's default.

  Returns:
    `Inputs`.

  Raises:
    InputError: The kind is unknown or does not fit the pipeline, or neither data set nor pipeline
      has a size.
  """
  data = config.data
  if kind in RENAMED_INPUTS:
    raise InputError(f"inputs {kind!r} are called {RENAMED_INPUTS[kind]!r} now")
  if not kind and data.name.startswith("cached_latents"):
    kind = "latents_and_embeddings" if data.get("embeddings", True) else "latents"
  kind = kind or "images"
  if kind not in INPUTS:
    raise unknown("kind of inputs", kind, INPUTS)
  if kind != "images" and pipeline.autoencoder is None:
    raise InputError(f"inputs {kind!r} need an autoencoder, and the pipeline has none")
  size = size or data.get("size", 0)
  if not size:
    try:
      size = max(pipeline.default_size())
    except InputError as error:
      raise InputError(f"the size of the images is unknown ({error}); give --size") from error
  return Inputs(kind, size, 1 if data.name in SINGLE_IMAGE_DATASETS else 2)


def abstract_batch(
  pipeline: TextToImage,
  params: Params,
  inputs: Inputs,
  examples: int,
  batch_sharding: jax.sharding.Sharding,
) -> Batch:
  """Returns the shapes, dtypes and shardings of a batch.

  Args:
    pipeline: The pipeline.
    params: Shapes of the parameters of all components.
    inputs: Form and size of the examples.
    examples: Number of examples.
    batch_sharding: Sharding of the first axis.

  Returns:
    `Batch` of `jax.ShapeDtypeStruct`s, in the dtypes that the data sets have.
  """

  def array(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((examples, *shape), dtype, sharding=batch_sharding)

  text = {name: array(x.shape, x.dtype) for name, x in pipeline.text_shapes.items()}
  image = (inputs.size, inputs.size, pipeline.image_channels)
  if inputs.kind == "latents_and_embeddings":
    embeddings = jax.eval_shape(pipeline.encode_text, params, text)
    text = {name: array(x.shape[1:], jnp.bfloat16) for name, x in embeddings.items()}
  batch = Batch(text, array((), jnp.uint32))
  edits = pipeline.encode_source is not None
  if inputs.kind == "images":
    batch = batch._replace(pixels=array((inputs.images, *image), jnp.uint8))
    if edits:
      batch = batch._replace(source=array(image, jnp.uint8))
  else:
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    posterior = jax.eval_shape(pipeline.posterior, params, pixels)
    shape = (inputs.images, 2, *posterior.mean.shape[1:])
    batch = batch._replace(latents=array(shape, jnp.bfloat16))
    if edits:
      batch = batch._replace(source_latents=array(shape[2:], jnp.bfloat16))
  if pipeline.uses_geometry:
    batch = batch._replace(geometry=array((6,), jnp.float32))
  return batch
