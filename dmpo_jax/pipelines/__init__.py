"""Model families: the only room that knows what a pipeline is made of."""

from dmpo_jax.pipelines.families import (
  FAMILIES,
  build,
  create,
  encoder_fingerprint,
  family_of,
  load,
  save,
)
from dmpo_jax.pipelines.fingerprints import sampling_fingerprint
from dmpo_jax.pipelines.finite import check_image, check_params
from dmpo_jax.pipelines.generate import (
  Sampler,
  SamplingInputs,
  cast_params,
  default_dtype,
  geometry,
  make_sampler,
  sample_all,
  sample_batches,
  sampling_inputs,
)
from dmpo_jax.pipelines.interface import Conditioning, Family, Params, Text, TextToImage
from dmpo_jax.pipelines.widen import widen

__all__ = [
  "FAMILIES",
  "Conditioning",
  "Family",
  "Params",
  "Sampler",
  "SamplingInputs",
  "Text",
  "TextToImage",
  "build",
  "cast_params",
  "check_image",
  "check_params",
  "create",
  "default_dtype",
  "encoder_fingerprint",
  "family_of",
  "geometry",
  "load",
  "make_sampler",
  "sample_all",
  "sample_batches",
  "sampling_fingerprint",
  "sampling_inputs",
  "save",
  "widen",
]
