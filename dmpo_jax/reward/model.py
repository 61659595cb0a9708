"""A scorer's model: CLIP with tokenizer and preprocessing, from a folder or new, and its folder."""

import dataclasses
import json
from typing import Any

import jax
from ml_collections import ConfigDict

from dmpo_jax import models
from dmpo_jax.common import atomic_folders, files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError
from dmpo_jax.interop import clip as clip_files
from dmpo_jax.interop import tokenizer, write_weights
from dmpo_jax.reward.objective import Normalisation

# Those of OpenAI's and LAION's CLIP.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SHARD_SIZE = 10 * 10**9


@dataclasses.dataclass(frozen=True)
class ScorerModel:
  """A CLIP model with all that a folder of transformers holds.

  Attributes:
    config: Fields of config.json.
    params: Parameters, numpy arrays.
    tokenizer: A tokenizer of transformers.
    normalisation: Of the preprocessor.
  """

  config: dict[str, Any]
  params: dict[str, Any]
  tokenizer: Any
  normalisation: Normalisation

  @property
  def image_size(self) -> int:
    """Side of the images in pixels."""
    return models.read_config(self.config).vision.image_size

  def tokenize(self, captions) -> tuple[dict[str, Any], int]:
    """Token ids of captions by name, and the number of truncated captions."""
    length = models.read_config(self.config).text.max_position_embeddings
    tokens = tokenizer.tokenize(self.tokenizer, captions, length=length)
    return {"input_ids": tokens.ids}, tokens.truncated


def load(config: ConfigDict, captions: list[str]) -> ScorerModel:
  """The model that a run starts from.

  Args:
    config: A checked config.
    captions: The training captions, from whose words a new model's vocabulary is made.

  Returns:
    `ScorerModel`.

  Raises:
    InputError: The folder cannot be read, or the fields of a new model are incomplete or unknown.
  """
  if not config.pretrained:
    return create(config.model.to_dict(), captions, config.seed)
  folder = clip_files.locate(config.pretrained)
  fields, params = clip_files.load_clip(folder)
  return ScorerModel(fields, params, tokenizer.read_tokenizer(folder), _normalisation(folder))


def create(fields: dict[str, Any], captions: list[str], seed: int) -> ScorerModel:
  """A new model with random parameters.

  Args:
    fields: Those of transformers' CLIPConfig. `vocab_size` and `eos_token_id` follow from the
      captions.
    captions: Texts whose words get a token each.
    seed: Seed of the parameters.

  Returns:
    `ScorerModel`.

  Raises:
    InputError: A field is unknown, or has a value that is not supported.
  """
  text = dict(fields.get("text_config", {}))
  if surplus := {"vocab_size", "eos_token_id"} & set(text):
    raise InputError(
      f"config.model.text_config has {sorted(surplus)[0]}, which follows from the captions; leave "
      "it out"
    )
  words = tokenizer.build_tokenizer(captions, text.get("max_position_embeddings", 77))
  size = len(words.get_vocab())
  text |= {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
  fields = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    **fields,
    "text_config": text | {"model_type": "clip_text_model", "pad_token_id": size - 1},
    "vision_config": {**fields.get("vision_config", {}), "model_type": "clip_vision_model"},
  }
  params = models.build(fields).init(jax.random.key(seed))
  return ScorerModel(fields, params, words, Normalisation(MEAN, STD))


def save(folder: paths.Path, model: ScorerModel) -> None:
  """Writes a folder that transformers' CLIPModel and the scorer pickscore load, whole or not at
  all.

  Args:
    folder: The target; a folder that exists is replaced.
    model: The model, its parameters on the host.

  Raises:
    InputError: The parameters do not fit the config.
    OSError: The folder cannot be written.
  """
  size = model.image_size
  preprocessor = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": size},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": size, "width": size},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(model.normalisation.mean),
    "image_std": list(model.normalisation.std),
  }
  with atomic_folders.folder_atomically(folder, index="config.json") as new:
    for name, values in (("config.json", model.config), (clip_files.PREPROCESSOR, preprocessor)):
      write_atomically(new / name, json.dumps(values, indent=2) + "\n")
    tokenizer.write_tokenizer(new, model.tokenizer)
    write_weights.write_network(
      new,
      model.config,
      model.params,
      variant=None,
      dtype=None,
      max_shard_size=MAX_SHARD_SIZE,
    )


def _normalisation(folder: paths.Path) -> Normalisation:
  """Mean and standard deviation in a folder's preprocessor; CLIP's where there is none."""
  path = folder / clip_files.PREPROCESSOR
  if not path.is_file():
    return Normalisation(MEAN, STD)
  fields = files.read_json(path, advice="take the files of the published model")
  values = [fields.get("image_mean", MEAN), fields.get("image_std", STD)]
  for name, numbers in zip(("image_mean", "image_std"), values, strict=True):
    valid = isinstance(numbers, list | tuple) and len(numbers) == 3
    valid = valid and all(isinstance(x, int | float) and abs(x) < 10 for x in numbers)
    if not valid or (name == "image_std" and min(numbers) <= 0):
      raise InputError(f"{path}: {name} is {numbers!r}, expected three numbers")
  return Normalisation(*(tuple(map(float, numbers)) for numbers in values))
