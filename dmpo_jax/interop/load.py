"""Pipelines and single networks, from a folder in diffusers' layout or from the hub."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dmpo_jax.errors import InputError, unknown
from dmpo_jax.interop import files, hub, read_weights, state_dict, tokenizer, weight_names
from dmpo_jax.interop.pipeline import (
  INDEX,
  NETWORKS,
  REQUIRED,
  TOKENIZERS,
  Pipeline,
  components_of,
  config_file,
)
from dmpo_jax.models import trees

TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")

# Models come under conditions that go with their copies; a README describes another model.
LICENSES = ("license", "licence", "notice", "copying", "use_policy")


def load_pipeline(
  source: str | os.PathLike,
  *,
  revision: str | None = None,
  variant: str | None = None,
  components: Collection[str] | None = None,
  dtype: Any = "float32",
  shardings: Callable[[str, trees.Tree], trees.Tree] | None = None,
) -> Pipeline:
  """Reads a pipeline that diffusers or `save_pipeline` wrote.

  Args:
    source: A folder with model_index.json and a folder for each component that it names; or the
      "owner/name" of a repository on the hub, of which the needed files are downloaded into the
      hub's cache. Weights are safetensors, in one file or in shards with an index.
    revision: Branch, tag or commit of the repository.
    variant: Which weights, as in diffusion_pytorch_model.fp16.safetensors; None: those without one.
    components: The networks whose parameters to read, of "unet", "vae", "text_encoder" and
      "text_encoder_2"; None: all. Configs and tokenizers are always read.
    dtype: Of the parameters: "float32", "float16", "bfloat16", or None for each as it is stored.
    shardings: `shardings(component, abstract parameters)` returns a tree of jax shardings; each
      parameter then becomes a jax.Array, and this process reads of it what its devices hold. None:
      numpy arrays.

  Returns:
    A `Pipeline`. Components it does not know, and networks that are not among `components`, are
    carried by path.

  Raises:
    InputError: The source is no pipeline or cannot be had, a component or file is missing, damaged
      or pickled, a config is not supported, or weights do not fit their config.
  """
  dtype = state_dict.float_name(dtype)
  folder = hub.locate(
    source,
    INDEX,
    lambda folder, names: _wanted(folder, names, variant, components),
    revision=revision,
  )
  model_index = _read_index(folder)
  there = components_of(model_index)
  for component in REQUIRED:
    if component not in there:
      raise InputError(
        f"{folder / INDEX} names no {component!r}; it names {', '.join(there) or 'nothing'}"
      )
  networks = [name for name in NETWORKS if name in there]
  loaded = _chosen(networks, components)
  opened = (*networks, *TOKENIZERS, "scheduler")
  for component in there:
    needed = components is None or component in opened  # the others are not downloaded then
    if needed and not (folder / component).is_dir():
      raise InputError(
        f"{folder} has no {component}/, which its {INDEX} names; complete the folder, or set "
        f'"{component}": [null, null] there if the pipeline does without it'
      )
  configs = {
    name: files.read_json(folder / name / config_file(name)) for name in (*networks, "scheduler")
  }
  tokenizers = {
    name: _read_tokenizer(folder / name, there[name][1]) for name in TOKENIZERS if name in there
  }
  params = {
    name: read_weights.read_network(
      folder / name,
      configs[name],
      variant=variant,
      dtype=dtype,
      shardings=shardings and (lambda tree, name=name: shardings(name, tree)),
    )
    for name in loaded
  }
  untouched = [name for name in there if name not in (*loaded, *TOKENIZERS, "scheduler")]
  licenses = [file.name for file in sorted(folder.iterdir()) if _is_license(file.name)]
  carried = {name: (folder / name).absolute() for name in (*untouched, *licenses)}
  return Pipeline(
    model_index,
    configs,
    params,
    tokenizers.get("tokenizer"),
    carried,
    tokenizers.get("tokenizer_2"),
  )


def read_model_index(source: str | os.PathLike, *, revision: str | None = None) -> dict[str, Any]:
  """The content of a pipeline's model_index.json: its class and components.

  Args:
    source: A folder, or the "owner/name" of a repository on the hub.
    revision: Branch, tag or commit of the repository.

  Returns:
    The fields of the file.

  Raises:
    InputError: The source is no pipeline or cannot be had.
  """
  folder = hub.locate(source, INDEX, lambda folder, names: [INDEX], revision=revision)
  return _read_index(folder)


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
  if not (folder / INDEX).is_file():
    raise InputError(
      f"{folder} is no pipeline folder: it has no {INDEX}; expected a folder in diffusers' layout "
      '(unet/, text_encoder/, tokenizer/, scheduler/), or a repository of the hub as "owner/name"'
    )
  return files.read_json(folder / INDEX)


def load_network(
  source: str | os.PathLike,
  *,
  subfolder: str = "",
  revision: str | None = None,
  variant: str | None = None,
  dtype: Any = "float32",
  shardings: Callable[[trees.Tree], trees.Tree] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads one network that lies by itself, such as another autoencoder for a pipeline.

  Args:
    source: A folder with config.json and weights, or the "owner/name" of a repository on the hub.
    subfolder: Where the network lies in there, with slashes.
    revision: As for `load_pipeline`.
    variant: As for `load_pipeline`.
    dtype: As for `load_pipeline`.
    shardings: `shardings(abstract parameters)` returns a tree of jax shardings; None: numpy arrays.

  Returns:
    The content of config.json, and the parameter tree.

  Raises:
    InputError: As for `load_pipeline`.
  """
  dtype = state_dict.float_name(dtype)
  anchor = "/".join(filter(None, (subfolder.strip("/"), "config.json")))
  prefix = anchor.removesuffix("config.json")

  def wanted(folder: pathlib.Path, names: Collection[str]) -> list[str]:
    config = files.read_json(folder / anchor)
    return [anchor, *_weights(names, prefix, config, variant)]

  folder = hub.locate(source, anchor, wanted, revision=revision) / prefix
  config = files.read_json(folder / "config.json")
  params = read_weights.read_network(
    folder, config, variant=variant, dtype=dtype, shardings=shardings
  )
  return config, params


def _chosen(networks: Collection[str], components: Collection[str] | None) -> list[str]:
  """The networks whose parameters are read."""
  if components is None:
    return list(networks)
  if isinstance(components, str):
    raise InputError(f"components is the single string {components!r}; expected a list of names")
  for name in components:
    if name not in networks:
      raise unknown("network in components", name, networks)
  return [name for name in networks if name in components]


def _read_tokenizer(folder: pathlib.Path, class_name: str) -> Any:
  if class_name not in TOKENIZER_CLASSES:
    raise InputError(
      f"{folder.name} is a {class_name}; expected {' or '.join(TOKENIZER_CLASSES)}: pipelines with "
      "other text encoders than CLIP's are not supported"
    )
  return tokenizer.read_tokenizer(folder)


def _is_license(name: str) -> bool:
  return name.lower().startswith(LICENSES)


def _wanted(
  folder: pathlib.Path,
  names: Collection[str],
  variant: str | None,
  components: Collection[str] | None,
) -> list[str]:
  """The files of a repository, of which `folder` has the index, that a pipeline is read from."""
  there = components_of(files.read_json(folder / INDEX))
  networks = [name for name in NETWORKS if name in there]
  loaded = _chosen(networks, components)
  wanted = [INDEX, *(name for name in names if "/" not in name and _is_license(name))]
  for component, (library, class_name) in there.items():
    if components is not None and component not in (*networks, *TOKENIZERS, "scheduler"):
      continue
    prefix = f"{component}/"
    wanted += _beside_weights(names, prefix)
    described = {"_class_name" if library == "diffusers" else "architectures": [class_name]}
    if component in loaded:
      with files.located(component):
        wanted += _weights(names, prefix, described, variant)
    elif component not in networks:
      wanted += _carried_weights(names, prefix, variant)
  return wanted


def _below(names: Collection[str], prefix: str) -> list[str]:
  """The names of the files in a folder of a repository, without the folder's."""
  rests = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
  return [rest for rest in rests if "/" not in rest]


def _beside_weights(names: Collection[str], prefix: str) -> list[str]:
  """Configs and vocabularies."""
  return [
    prefix + name
    for name in _below(names, prefix)
    if name.endswith((".json", ".txt")) and ".index." not in name
  ]


def _weights(
  names: Collection[str], prefix: str, config: Mapping[str, Any], variant: str | None
) -> list[str]:
  there = _below(names, prefix)
  found = weight_names.find(there, weight_names.stem(config), variant)
  if not found:
    raise weight_names.explain_absence(there, config, variant, None)
  return [prefix + name for name in found]


def _carried_weights(names: Collection[str], prefix: str, variant: str | None) -> list[str]:
  """Those of the variant or else those without one: as diffusers takes them."""
  there = _below(names, prefix)
  for stem in weight_names.STEMS:
    found = weight_names.find(there, stem, variant) or weight_names.find(there, stem, None)
    if found:
      return [prefix + name for name in found]
  pickled = [name for name in there if name.endswith(weight_names.PICKLES)]
  if pickled:
    raise InputError(
      f"{prefix} has pickled weights alone ({', '.join(pickled)}), which are not downloaded; "
      "download the repository yourself (huggingface_hub.snapshot_download) and give the folder, "
      "or name the networks to load in components"
    )
  return []
