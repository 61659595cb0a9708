"""A pipeline in memory: configs and parameters of its networks, its tokenizers, its other files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from dmpo_jax.common import paths
from dmpo_jax.common.files import check_name
from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import files
from dmpo_jax.models.build import NETWORKS

if TYPE_CHECKING:
  from transformers import CLIPTokenizer

INDEX = "model_index.json"
SCHEDULER = "scheduler"
STABLE_DIFFUSION = "StableDiffusionPipeline"
# Class of a pipeline -> that of the same one with a UNet that reads the image to edit too.
EDITING = {
  STABLE_DIFFUSION: "StableDiffusionInstructPix2PixPipeline",
  "StableDiffusionXLPipeline": "StableDiffusionXLInstructPix2PixPipeline",
}
# Endings of the names of tokenizer classes.
TOKENIZERS = ("Tokenizer", "TokenizerFast")


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """A text-to-image pipeline in memory.

  Attributes:
    model_index: Content of model_index.json: component -> [library, class], and plain fields such
      as force_zeros_for_empty_prompt.
    configs: "scheduler" and each network of the pipeline ("unet", "vae", "text_encoder", ...) ->
      content of its config file.
    params: Network -> parameter tree, of the networks that are loaded.
    tokenizers: "tokenizer", "tokenizer_2", ... -> tokenizer of transformers, of those that the
      pipeline has.
    passthrough: Files and folders that are copied unchanged when the pipeline is saved, name ->
      path: other components (a safety checker), networks that are not loaded, licenses.
  """

  model_index: Mapping[str, Any]
  configs: Mapping[str, Mapping[str, Any]]
  params: Mapping[str, Mapping[str, Any]]
  tokenizers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  passthrough: Mapping[str, paths.Path] = dataclasses.field(default_factory=dict)


def components_of(model_index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
  """The components that a model_index.json names, without those that are null.

  Args:
    model_index: Its content.

  Returns:
    Component -> (library, class).

  Raises:
    InputError: A component's name has other characters than letters, digits and underscores (it is
      the name of a folder), or its library or class is no text.
  """
  components = {}
  for name, value in model_index.items():
    if not isinstance(value, list) or len(value) != 2 or value[1] is None:
      continue
    check_name(name, f"the component of {INDEX}")
    if not all(isinstance(part, str) for part in value):
      raise InputError(
        f"{INDEX}: component {name} is {short(value)}, expected the names of a library and a class"
      )
    components[name] = (value[0], value[1])
  return components


def networks_of(
  model_index: Mapping[str, Any], networks: Collection[str] | None = None
) -> list[str]:
  """The components that are networks.

  Args:
    model_index: Content of model_index.json.
    networks: Names of the networks that a pipeline may have; None: every component of a class in
      `models.build.NETWORKS`.

  Returns:
    Names of components, sorted.
  """
  return sorted(
    name
    for name, (_, kind) in components_of(model_index).items()
    if (kind in NETWORKS if networks is None else name in networks)
  )


def tokenizers_of(model_index: Mapping[str, Any]) -> list[str]:
  """The components that are tokenizers.

  Args:
    model_index: Content of model_index.json.

  Returns:
    Names of components, sorted.
  """
  components = components_of(model_index).items()
  return sorted(name for name, (_, kind) in components if kind.endswith(TOKENIZERS))


def config_file(component: str) -> str:
  """File name of a component's config."""
  return "scheduler_config.json" if component == SCHEDULER else "config.json"


def pixel_pipeline(
  configs: Mapping[str, Mapping[str, Any]],
  params: Mapping[str, Mapping[str, Any]],
  tokenizer: CLIPTokenizer,
) -> Pipeline:
  """A pipeline that denoises pixels: a StableDiffusionPipeline without a VAE.

  With a UNet that reads twice the channels it returns, those of the image to edit too, it is a
  StableDiffusionInstructPix2PixPipeline.

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
  for component in ("unet", "text_encoder", SCHEDULER):
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
  unet = configs["unet"]
  edits = unet.get("in_channels") == 2 * unet.get("out_channels", 0)
  model_index = {
    "_class_name": EDITING[STABLE_DIFFUSION] if edits else STABLE_DIFFUSION,
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
  return Pipeline(model_index, configs, params, {"tokenizer": tokenizer})


def _check_tokenizer(tokenizer: CLIPTokenizer, config: Mapping[str, Any]) -> None:
  # An id past the end of the embedding table is no error in JAX; it reads as NaN.
  for field, value, least in (
    ("vocab_size", len(tokenizer), True),
    ("max_position_embeddings", tokenizer.model_max_length, True),
    ("eos_token_id", tokenizer.eos_token_id, False),
  ):
    stated = config.get(field)
    if stated is None or (stated < value if least else stated != value):
      raise InputError(
        f"text_encoder config: {field} is {stated!r}; the tokenizer needs "
        f"{'at least ' if least else ''}{value}"
      )
