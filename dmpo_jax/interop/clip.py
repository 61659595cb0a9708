"""CLIP models from folders of transformers, checkpoints of open_clip, and files that wrap them."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from dmpo_jax.common import paths
from dmpo_jax.common.files import is_file
from dmpo_jax.errors import InputError
from dmpo_jax.interop import files, hub, open_clip, read_weights, state_dict, weight_names
from dmpo_jax.interop.read_weights import Entry
from dmpo_jax.interop.torch_file import read_torch_file

PICKLED = "pytorch_model.bin"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
PREPROCESSOR = "preprocessor_config.json"


def open_tensors(file: str | os.PathLike) -> dict[str, Entry]:
  """The tensors of a file: safetensors, or a state dict of torch.save.

  Args:
    file: The file.

  Returns:
    Torch name -> tensor, whose values are read when they are needed.

  Raises:
    InputError: The file is missing or damaged, see `torch_file.read_torch_file`.
  """
  file = paths.parse(file)
  if not is_file(file):
    raise InputError(f"{file} is missing")
  if file.suffix == weight_names.SUFFIX:
    with files.located(file.parent):
      return read_weights.open_file(file)
  return read_torch_file(file)


def load_clip(
  source: str | os.PathLike,
  *,
  activation: str | None = None,
  revision: str | None = None,
  dtype: Any = "float32",
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a CLIP model with both encoders.

  Args:
    source: A folder of transformers' CLIPModel (config.json and model.safetensors, in shards or
      not, or pytorch_model.bin); a folder with open_clip_config.json and open_clip's weights; a
      repository of the hub, "owner/name"; or a file of open_clip: safetensors or of torch.save,
      alone or as `state_dict`, as HPS is published.
    activation: Of a file of open_clip without a config: "gelu" or "quick_gelu".
    revision: Branch, tag or commit of the repository.
    dtype: Dtype of the parameters: "float32", "float16", "bfloat16", or None for the stored one.

  Returns:
    The fields of transformers' config.json, and the parameter tree.

  Raises:
    InputError: The source cannot be had or is damaged, or is no CLIPModel.
  """
  dtype = state_dict.float_name(dtype)
  if is_file(source):
    return _from_open_clip(open_tensors(source), source, None, activation, dtype)
  root = locate(source, revision)
  names = files.names(root)
  if "config.json" not in names:
    stated = files.read_json(root / open_clip.CONFIG)
    file = next(name for name in OPEN_CLIP if name in names)
    return _from_open_clip(open_tensors(root / file), root / file, stated, activation, dtype)
  config = files.read_json(root / "config.json")
  _check_class(config, root)
  if PICKLED in names and not weight_names.variants(names, weight_names.stem(config)):
    entries = read_torch_file(root / PICKLED)
    return config, read_weights.read_entries(entries, config, root / PICKLED, dtype=dtype)
  params = read_weights.read_network(root, config, variant=None, dtype=dtype, shardings=None)
  return config, params


def locate(source: str | os.PathLike, revision: str | None = None) -> paths.Path:
  """The folder of a CLIP model; the needed files of a repository are downloaded.

  Args:
    source: A folder, or the "owner/name" of a repository on the hub.
    revision: Branch, tag or commit of the repository.

  Returns:
    The folder.

  Raises:
    InputError: The source cannot be had, or holds no CLIP model.
  """
  root = hub.locate(source, "config.json", _wanted, revision=revision)
  names = files.contents(root)
  if "config.json" in names:
    return root
  if open_clip.CONFIG not in names or not any(name in names for name in OPEN_CLIP):
    raise InputError(
      f"{root} holds no CLIP model: expected config.json with model.safetensors (transformers), or "
      f"{open_clip.CONFIG} with {' or '.join(OPEN_CLIP)}"
    )
  return root


def _wanted(folder: paths.Path, names: Collection[str]) -> list[str]:
  """Files of a repository that a CLIP model, its tokenizer and preprocessing are read from."""
  config = files.read_json(folder / "config.json")
  _check_class(config, folder)
  below = [name for name in names if "/" not in name]
  weights, _ = weight_names.choose(below, weight_names.stem(config), None)
  if not weights:
    if PICKLED not in below:
      raise weight_names.explain_absence(below, config, None, None)
    weights = [PICKLED]
  beside = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", *TOKENIZER)
  return ["config.json", *weights, *(n for n in (*beside, PREPROCESSOR) if n in below)]


def _check_class(config: Mapping[str, Any], where: object) -> None:
  if files.class_name(config, where) != "CLIPModel":
    raise InputError(
      f"{where} describes a {files.class_name(config, where)}, expected a CLIPModel: both encoders "
      "with their projections"
    )


def _from_open_clip(
  entries: Mapping[str, Entry],
  where: object,
  stated: Mapping[str, Any] | None,
  activation: str | None,
  dtype: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  with files.located(where):
    if not open_clip.is_open_clip(entries):
      if "vision_model.embeddings.class_embedding" in entries:
        raise InputError("the file has transformers' names; give its folder, with config.json")
      first = ", ".join(sorted(entries)[:3])
      raise InputError(f"the file holds no CLIP model; its first tensors are {first}")
    config, renamed = open_clip.convert(entries, stated=stated, activation=activation)
  return config, read_weights.read_entries(renamed, config, where, dtype=dtype)


def locate_file(source: str | os.PathLike, name: str) -> paths.Path:
  """The folder of a file with a known name; of a repository, this file alone is downloaded.

  Args:
    source: A folder, or the "owner/name" of a repository on the hub.
    name: The file's name.

  Returns:
    The folder; a local one is not checked.

  Raises:
    InputError: The source cannot be had.
  """
  return hub.locate(source, name, lambda folder, names: [name], revision=None)
