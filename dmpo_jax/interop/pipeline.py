"""A pipeline in memory: its networks' configs and parameters, its tokenizers, what it carries."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dmpo_jax.errors import InputError
from dmpo_jax.interop import files

if TYPE_CHECKING:
  from transformers import CLIPTokenizer

INDEX = "model_index.json"

# The components that are read, under diffusers' names; every other one is carried.
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
REQUIRED = ("unet", "text_encoder", "scheduler")


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """A text-to-image pipeline in memory.

  Attributes:
    model_index: The content of model_index.json: component -> [library, class], and plain fields
      such as force_zeros_for_empty_prompt.
    configs: "scheduler" and each of "unet", "vae", "text_encoder" and "text_encoder_2" that the
      pipeline has -> the content of its config file.
    params: The same networks -> parameter tree, unless only some were loaded.
    tokenizer: transformers' CLIPTokenizer, or None where the pipeline has none.
    carried: What is copied unread when the pipeline is saved -> where it lies: the folders of other
      components (a safety checker) and of networks that were not loaded, and license files.
    tokenizer_2: That of text_encoder_2.
  """

  model_index: Mapping[str, Any]
  configs: Mapping[str, Mapping[str, Any]]
  params: Mapping[str, Mapping[str, Any]]
  tokenizer: CLIPTokenizer | None
  carried: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  tokenizer_2: CLIPTokenizer | None = None


def components_of(model_index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
  """The components that a model_index.json names, without those that are null.

  Args:
    model_index: Its content.

  Returns:
    Component -> (library, class).
  """
  return {
    name: (value[0], value[1])
    for name, value in model_index.items()
    if isinstance(value, list) and len(value) == 2 and value[1] is not None
  }


def config_file(component: str) -> str:
  """The name of a component's config file."""
  return "scheduler_config.json" if component == "scheduler" else "config.json"


def pixel_pipeline(
  configs: Mapping[str, Mapping[str, Any]],
  params: Mapping[str, Mapping[str, Any]],
  tokenizer: CLIPTokenizer,
) -> Pipeline:
  """Puts together a pipeline that denoises pixels: a StableDiffusionPipeline without a VAE.

  diffusers loads the saved folder with `StableDiffusionPipeline.from_pretrained(folder, vae=None)`
  and samples with `output_type="latent"`, which returns the pixels in [-1, 1].

  Args:
    configs: "unet", "text_encoder" and "scheduler" -> config, with the class in `_class_name`
      (`architectures` for the text encoder).
    params: "unet" and "text_encoder" -> parameter tree.
    tokenizer: transformers' CLIPTokenizer.

  Returns:
    A `Pipeline`.

  Raises:
    InputError: A config is missing or names no class, the tokenizer and the text encoder do not
      belong together, or the scheduler's config has a value that StableDiffusionPipeline overrides
      when it loads, so that it would sample differently.
  """
  for component in REQUIRED:
    if component not in configs:
      raise InputError(f"configs has no {component!r}; it has {', '.join(configs) or 'nothing'}")
  scheduler = configs["scheduler"]
  for field, value in {"steps_offset": 1, "clip_sample": False}.items():
    if scheduler.get(field) != value:
      raise InputError(
        f"scheduler config: {field} is {scheduler.get(field)!r}; set it to {value!r}, because "
        "diffusers' StableDiffusionPipeline overrides it with that value when it loads"
      )
  _check_tokenizer(tokenizer, configs["text_encoder"])
  model_index = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": importlib.metadata.version("diffusers"),
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", files.class_name(scheduler, "scheduler")],
    "text_encoder": ["transformers", files.class_name(configs["text_encoder"], "text_encoder")],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", files.class_name(configs["unet"], "unet")],
    "vae": [None, None],
  }
  return Pipeline(model_index, configs, params, tokenizer)


def _check_tokenizer(tokenizer: CLIPTokenizer, config: Mapping[str, Any]) -> None:
  # An id past the end of the embedding table is no error in JAX; it reads as NaN.
  for field, value, least in (
    ("vocab_size", len(tokenizer), True),
    ("max_position_embeddings", tokenizer.model_max_length, True),
    ("eos_token_id", tokenizer.eos_token_id, False),
  ):
    given = config.get(field)
    if given is None or (given < value if least else given != value):
      raise InputError(
        f"text_encoder config: {field} is {given!r}; the tokenizer asks for "
        f"{'at least ' if least else ''}{value}"
      )
