"""Features of images and prompts by a CLIP model, for the scorers that are built on one."""

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import interop, models
from dmpo_jax.common import files, paths
from dmpo_jax.errors import InputError, short
from dmpo_jax.evaluation.scorers.base import Images
from dmpo_jax.evaluation.scorers.batches import batched, rows_on
from dmpo_jax.evaluation.scorers.preprocess import Preprocessing
from dmpo_jax.interop import clip as clip_files

PREPROCESSOR = "preprocessor_config.json"
# Its vocabulary is that of all CLIP models; weights without one beside them are read with it.
TOKENIZER = "openai/clip-vit-large-patch14"
WIDTHS = {768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "bigG"}

LOGGER = logging.getLogger(__name__)


class ClipFeatures(NamedTuple):
  """A CLIP model that is ready to score.

  Attributes:
    architecture: Its name in tables ("ViT-L/14").
    dimension: d, the size of its features.
    scale: exp(logit_scale), the factor of similarities.
    images: `images(images)` returns features of norm 1, float32 `[N, d]`.
    texts: `texts(prompts)` returns features of norm 1, float32 `[N, d]`.
  """

  architecture: str
  dimension: int
  scale: float
  images: Any
  texts: Any

  def cosine(self, images: Images, prompts: Sequence[str]) -> np.ndarray:
    """Cosine of the features of each image and of its prompt, float32 `[N]`."""
    return np.sum(self.images(images) * self.texts(prompts), axis=-1)


def load_features(
  source: str | os.PathLike,
  *,
  dtype: str,
  batch_size: int,
  devices: Sequence[jax.Device] | None,
  preprocessing: Preprocessing | None = None,
  tokenizer: str | None = None,
  activation: str | None = None,
  prefix: str = "",
) -> ClipFeatures:
  """Reads a CLIP model; the tokenizer is read when a prompt comes.

  Args:
    source: As for `interop.load_clip`.
    dtype: Dtype of the parameters and of the computation; features are float32.
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    preprocessing: How images are prepared; its size is replaced by the model's. None: as
      transformers does, with the mean and deviation in preprocessor_config.json if there is one.
    tokenizer: Folder or repository of the tokenizer; None: that of `source`, or `TOKENIZER`.
    activation: Of a file of open_clip without a config.
    prefix: Text in front of every prompt.

  Returns:
    `ClipFeatures`.

  Raises:
    InputError: A file is missing, damaged or does not fit; see `interop.load_clip`.
  """
  config, params = interop.load_clip(source, activation=activation, dtype=dtype)
  fields, network = models.read_config(config), models.build(config)
  folder = None if files.is_file(source) else clip_files.locate(source)
  if preprocessing is None:
    preprocessing = _stated(folder)
  preprocessing = preprocessing._replace(size=fields.vision.image_size)
  read_tokenizer = functools.cache(lambda: _tokenizer(folder, tokenizer))
  rows = rows_on(devices, batch_size)
  params = jax.device_put(params, rows.everywhere)

  def embed_images(params, crops):
    return _unit(network.encode_image(params, preprocessing.normalise(crops), dtype=dtype))

  def embed_texts(params, ids):
    return _unit(network.encode_text(params, ids, dtype=dtype))

  run_images, run_texts = (batched(f, params, rows) for f in (embed_images, embed_texts))

  def texts(prompts: Sequence[str]) -> np.ndarray:
    unique = list(dict.fromkeys(prompts))
    longest = fields.text.max_position_embeddings
    tokens = interop.tokenize(read_tokenizer(), [prefix + p for p in unique], length=longest)
    check_ids(tokens, fields.text.vocab_size, longest)
    features = run_texts(list(tokens.ids), lambda row: row)
    position = {prompt: i for i, prompt in enumerate(unique)}
    return features[[position[prompt] for prompt in prompts]]

  return ClipFeatures(
    architecture(fields),
    fields.projection_dim,
    float(np.exp(np.float32(params["logit_scale"]))),
    lambda images: run_images(images, lambda image: preprocessing.crop_of(np.asarray(image))),
    texts,
  )


def architecture(config: Any) -> str:
  """The name of a CLIP's image encoder in tables, such as "ViT-L/14"."""
  width = config.vision.hidden_size
  return f"ViT-{WIDTHS.get(width, width)}/{config.vision.patch_size}"


def _unit(features: jax.Array) -> jax.Array:
  """Features of norm 1, float32."""
  x = features.astype(jnp.float32)
  return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def check_ids(tokens: interop.Tokens, vocabulary: int, longest: int) -> None:
  """Raises InputError for tokens that an encoder does not have; warns of prompts that are cut."""
  if tokens.ids.size and tokens.ids.max() >= vocabulary:
    raise InputError(
      f"the tokenizer gives the token {tokens.ids.max()}, and the text encoder has {vocabulary}; "
      "give the tokenizer of this model"
    )
  if tokens.truncated:
    LOGGER.warning(
      "%d of %d prompts are longer than %d tokens and are scored without their end",
      *(tokens.truncated, len(tokens.ids), longest),
    )


def _tokenizer(folder: paths.Path | None, source: str | None) -> Any:
  """The tokenizer of a CLIP model."""
  beside = folder is not None and any(
    (folder / name).is_file() for name in ("tokenizer.json", "vocab.json")
  )
  if source is None and beside:
    return interop.read_tokenizer(folder)
  try:
    return interop.load_tokenizer(source or TOKENIZER)
  except InputError as error:
    if source is not None:
      raise
    raise InputError(
      f"no tokenizer is beside the weights, and that of {TOKENIZER} cannot be read: {error}\n"
      "Give one: tokenizer=FOLDER, such as tokenizer/ of a Stable Diffusion pipeline"
    ) from error


def _stated(folder: paths.Path | None) -> Preprocessing:
  """transformers' preprocessing, with the mean and deviation of a folder."""
  plain = Preprocessing(0)
  file = None if folder is None else folder / PREPROCESSOR
  if file is None or not file.is_file():
    return plain
  stated = files.read_json(file)
  values = {}
  for name, key in (("mean", "image_mean"), ("std", "image_std")):
    value = stated.get(key, getattr(plain, name))
    numbers = isinstance(value, list | tuple) and len(value) == 3
    if not numbers or not all(isinstance(x, int | float) and -10 < x < 10 for x in value):
      raise InputError(f"{file}: {key} is {short(value)}, expected three numbers")
    values[name] = tuple(map(float, value))
  if stated.get("resample", 3) != 3:
    raise InputError(f"{file}: resample is {short(stated['resample'])}; only 3, bicubic, is known")
  if 0 in values["std"]:
    raise InputError(f"{file}: image_std has a zero")
  return plain._replace(**values)


def find_file(source: str, name: str) -> str | paths.Path:
  """A file, given itself, its folder or the repository that has it.

  Args:
    source: The file; or a folder or repository that has the file `name`.
    name: The file's name there.

  Returns:
    Its path.

  Raises:
    InputError: There is none.
  """
  if files.is_file(source):
    return source
  folder = interop.locate_file(source, name)
  if not (folder / name).is_file():
    raise InputError(f"{folder} has no {name}; give the file itself if it has another name")
  return folder / name
