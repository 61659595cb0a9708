"""All families, and functions that choose one by the class that a pipeline names."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dmpo_jax import interop
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, short, unknown
from dmpo_jax.pipelines import stable_diffusion, stable_diffusion_3
from dmpo_jax.pipelines.interface import Family, TextToImage

# Class in model_index.json -> family.
FAMILIES: dict[str, Family] = {
  "StableDiffusionPipeline": stable_diffusion.FAMILY,
  "StableDiffusionXLPipeline": stable_diffusion.FAMILY,
  "StableDiffusionInstructPix2PixPipeline": stable_diffusion.FAMILY,
  "StableDiffusionXLInstructPix2PixPipeline": stable_diffusion.FAMILY,
  "StableDiffusion3Pipeline": stable_diffusion_3.FAMILY,
}


def family_of(model_index: Mapping[str, Any]) -> Family:
  """The family of a pipeline.

  Pipelines of other classes that are made of the components of Stable Diffusion belong to its
  family.

  Args:
    model_index: Content of the pipeline's model_index.json.

  Returns:
    `Family`.

  Raises:
    InputError: No family has that class.
  """
  name = model_index.get("_class_name", "StableDiffusionPipeline")
  if not isinstance(name, str):
    raise InputError(f"{interop.INDEX}: _class_name is {short(name)}, expected the name of a class")
  if name in FAMILIES:
    return FAMILIES[name]
  if stable_diffusion.DENOISER in model_index:
    return stable_diffusion.FAMILY
  raise unknown("pipeline class (_class_name of model_index.json)", name, FAMILIES)


def load(source: str | os.PathLike, **options: Any) -> interop.Pipeline:
  """Reads the pipeline of any family.

  Args:
    source: A folder, or the "owner/name" of a repository on the hub.
    **options: Those of `interop.load_pipeline`.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: The pipeline cannot be read, or is of no known family.
  """
  index = interop.read_model_index(source, revision=options.get("revision"))
  return family_of(index).load(source, **options)


def build(pipeline: interop.Pipeline, **options: Any) -> TextToImage:
  """A pipeline as pure functions of its parameters.

  Args:
    pipeline: Its configs and tokenizers are used, its parameters are not.
    **options: Those of `Family.build`: dtype, compute.

  Returns:
    `TextToImage`.

  Raises:
    InputError: A network, or a value in a config, is not supported.
  """
  return family_of(pipeline.model_index).build(pipeline, **options)


def create(model: Mapping[str, Any], captions: Sequence[str], seed: int) -> interop.Pipeline:
  """A pipeline with new random networks.

  Args:
    model: Component -> config, with the class of the pipeline as "_class_name" (by default Stable
      Diffusion's).
    captions: The tokenizer's vocabulary is made of their words.
    seed: Seed of the initialisation.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: The family is unknown or makes no new networks, or a component is missing or
      unknown.
  """
  model = dict(model)
  name = model.pop("_class_name", None)
  family = family_of({} if name is None else {"_class_name": name})
  if family.create is None:
    raise InputError(
      f"config.model names {name!r}, which makes no new networks; set config.pipeline"
    )
  pipeline = family.create(model, captions, seed)
  made = pipeline.model_index["_class_name"]
  if name not in (None, made):
    raise InputError(
      f"config.model names {name!r}, and its networks make a {made}; a UNet for editing has twice "
      "as many in_channels as out_channels"
    )
  return pipeline


def save(folder: paths.Path, pipeline: interop.Pipeline, **options: Any) -> None:
  """Writes the pipeline of any family.

  Args:
    folder: The target, see `interop.save_pipeline`.
    pipeline: The pipeline.
    **options: Those of `interop.save_pipeline`: dtype, max_shard_size, variant.

  Raises:
    InputError: An argument is not valid, or the pipeline cannot be written.
  """
  family_of(pipeline.model_index).save(folder, pipeline, **options)


def encoder_fingerprint(pipeline: interop.Pipeline, *, embeddings: bool) -> dict[str, Any]:
  """Everything that cached latents and text embeddings depend on beside images and captions.

  Args:
    pipeline: Its frozen encoders must be loaded.
    embeddings: Whether text embeddings are cached too.

  Returns:
    A dict in JSON.
  """
  return family_of(pipeline.model_index).encoder_fingerprint(pipeline, embeddings=embeddings)
