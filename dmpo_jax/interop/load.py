"""Pipelines and single networks, from a folder in diffusers' layout or from the hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dmpo_jax.common import files as common_files
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, short, unknown
from dmpo_jax.interop import files, hub, read_weights, state_dict, tokenizer, weight_names
from dmpo_jax.interop.pipeline import (
  INDEX,
  SCHEDULER,
  Pipeline,
  components_of,
  config_file,
  networks_of,
  tokenizers_of,
)
from dmpo_jax.models import config_fields, trees
from dmpo_jax.models.build import NETWORKS

LOGGER = logging.getLogger(__name__)

# Files that a license requires in every copy. A README is left out: it describes another model.
LICENSES = ("license", "licence", "notice", "copying", "use_policy")


def load_pipeline(
  source: str | os.PathLike,
  *,
  revision: str | None = None,
  variant: str | None = None,
  components: Collection[str] | None = None,
  networks: Collection[str] | None = None,
  required: Collection[str] = (SCHEDULER,),
  dtype: Any = "float32",
  shardings: Callable[[str, trees.Tree], trees.Tree] | None = None,
  strict: bool = False,
) -> Pipeline:
  """Reads a pipeline that diffusers or `save_pipeline` wrote.

  Args:
    source: A folder with model_index.json and a folder for each component that it names; or the
      "owner/name" of a repository on the hub, whose needed files are downloaded into the hub's
      cache. Weights are safetensors, in one file or in shards with an index.
    revision: Branch, tag or commit of the repository.
    variant: Variant of the weights, as in diffusion_pytorch_model.fp16.safetensors. Networks
      without that variant are read from weights without one, as in diffusers. None: weights without
      a variant, or a network's only variant.
    components: Names of the networks whose parameters are read; None: all networks. Configs and
      tokenizers are always read.
    networks: Names of the components that are networks; None: those of a class in
      `models.build.NETWORKS`.
    required: Components that the index must name.
    dtype: Dtype of the parameters: "float32", "float16", "bfloat16", or None for the stored one.
    shardings: `shardings(component, abstract parameters)` returns a tree of jax shardings; each
      parameter then becomes a jax.Array, and this process reads the shards of its devices. None:
      numpy arrays.
    strict: Whether tensors in the files that no layer reads are refused; otherwise a warning lists
      them.

  Returns:
    A `Pipeline`. Components that are no network, tokenizer or scheduler, and networks that are not
    in `components`, pass through by path.

  Raises:
    InputError: The source is no pipeline or cannot be had, a component or file is missing, damaged
      or pickled, a link leaves the folder, no network has the variant, a config is not supported,
      or weights do not fit their config.
  """
  dtype = state_dict.float_name(dtype)
  folder = hub.locate(
    source,
    INDEX,
    lambda folder, names: _wanted(
      folder, names, variant, components, networks, weights=not paths.is_url(source)
    ),
    revision=revision,
  )
  weights = _weights_folder(source, folder)
  model_index = _read_index(folder)
  classes = components_of(model_index)
  for component in required:
    if component not in classes:
      raise InputError(
        f"{folder / INDEX} names no {component!r}; it names {', '.join(classes) or 'nothing'}"
      )
  networks, tokenizers = networks_of(model_index, networks), tokenizers_of(model_index)
  loaded = _selected(networks, components)
  configured = [*networks, *(name for name in classes if name == SCHEDULER)]
  below = {}
  for component in classes:
    # With `components`, other components are not downloaded.
    needed = components is None or component in (*configured, *tokenizers)
    if (folder / component).is_dir():
      below[component] = [name for name in files.contents(folder, component) if "/" not in name]
    elif needed:
      raise InputError(
        f"{folder} has no {component}/, which its {INDEX} names; complete the folder, or set "
        f'"{component}": [null, null] there if the pipeline does without it'
      )
  # Of a repository or a bucket, only the files that are read are here.
  if hub.is_folder(source) and not paths.is_url(source):
    weight_names.check_variant(below, variant)
  configs = {name: files.read_json(folder / name / config_file(name)) for name in configured}
  for name in networks:
    with files.located(folder / name):
      configs[name] = _with_class(configs[name], classes[name])
  if paths.is_url(source):  # their weights are not copied
    below |= {name: files.names(weights / name) for name in loaded}
  _tell_variants({name: (below[name], configs[name]) for name in loaded}, variant)
  configs |= {
    name: read_weights.with_buffers(weights / name, configs[name], variant=variant)
    for name in loaded
  }
  params = {
    name: read_weights.read_network(
      weights / name,
      configs[name],
      variant=variant,
      dtype=dtype,
      shardings=shardings and (lambda tree, name=name: shardings(name, tree)),
      strict=strict,
    )
    for name in loaded
  }
  others = [name for name in classes if name not in (*loaded, *tokenizers, SCHEDULER)]
  licenses = [name for name in files.names(folder) if _is_license(name)]
  for name in licenses:
    common_files.inside(folder, name, "file")
  return Pipeline(
    model_index,
    configs,
    params,
    {name: tokenizer.read_tokenizer(folder / name, classes[name][1]) for name in tokenizers},
    {name: (folder / name).absolute() for name in (*others, *licenses)},
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


def _read_index(folder: paths.Path) -> dict[str, Any]:
  if not common_files.inside(folder, INDEX, "file").is_file():
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
  strict: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a single network, such as another autoencoder for a pipeline.

  Args:
    source: A folder with config.json and weights, or the "owner/name" of a repository on the hub.
    subfolder: Folder of the network in the source, with slashes.
    revision: Branch, tag or commit of the repository.
    variant: Variant of the weights; None: weights without one, or the only variant.
    dtype: Dtype of the parameters: "float32", "float16", "bfloat16", or None for the stored one.
    shardings: `shardings(abstract parameters)` returns a tree of jax shardings; None: numpy arrays.
    strict: Whether tensors in the files that no layer reads are refused.

  Returns:
    The content of config.json, and the parameter tree.

  Raises:
    InputError: The source cannot be had, a file is missing, damaged or pickled, the config is not
      supported, or the weights do not fit it.
  """
  dtype = state_dict.float_name(dtype)
  parts = [part for part in subfolder.split("/") if part]
  if ".." in parts:
    raise InputError(f"subfolder is {short(subfolder)}; expected a folder in the source")
  anchor = "/".join((*parts, "config.json"))
  prefix = anchor.removesuffix("config.json")

  def wanted(folder: paths.Path, names: Collection[str]) -> list[str]:
    config = files.read_json(folder / anchor)
    if variant is not None:
      _check_variant_of_one(_below(names, prefix), config, variant, None)
    chosen = _weights(names, prefix, config, variant)
    return [anchor, *(chosen if not paths.is_url(source) else [])]

  root = hub.locate(source, anchor, wanted, revision=revision)
  folder = root / prefix
  config = files.read_json(folder / "config.json")
  if paths.is_url(source):
    folder = _weights_folder(source, root) / prefix
  elif variant is not None:
    below = [name for name in files.contents(root, prefix) if "/" not in name]
    with files.located(folder):
      _check_variant_of_one(below, config, variant, str(folder))
  config = read_weights.with_buffers(folder, config, variant=variant)
  params = read_weights.read_network(
    folder, config, variant=variant, dtype=dtype, shardings=shardings, strict=strict
  )
  return config, params


def _weights_folder(source: str | os.PathLike, folder: paths.Path) -> paths.Path:
  """The folder that weights are read from: a bucket itself, of which ranges are read."""
  return paths.parse(source) if paths.is_url(source) else folder


def _check_variant_of_one(
  names: Collection[str], config: Mapping[str, Any], variant: str, where: str | None
) -> None:
  """Raises InputError unless a single network has the variant that is asked for."""
  if variant not in weight_names.variants(names, weight_names.stem(config)):
    raise weight_names.explain_absence(names, config, variant, where)


def _selected(networks: Collection[str], components: Collection[str] | None) -> list[str]:
  """Networks whose parameters are read."""
  if components is None:
    return list(networks)
  if isinstance(components, str):
    raise InputError(f"components is the single string {components!r}; expected a list of names")
  for name in components:
    if name not in networks:
      raise unknown("network in components", name, networks)
  return [name for name in networks if name in components]


def _with_class(config: dict[str, Any], component: tuple[str, str]) -> dict[str, Any]:
  """The config of a network with the class that model_index.json names.

  transformers builds the class of the index, whatever the config says: the architectures of a text
  encoder may be those of the model that it was cut from.
  """
  library, kind = component
  stated = config_fields.class_names(config)
  if kind not in NETWORKS or kind in stated:
    return config
  if library == "transformers":
    return {**config, "architectures": [kind]}
  if not stated:
    return {**config, "_class_name": kind}
  if stated[0] in NETWORKS:
    raise InputError(f"config.json describes a {stated[0]}, and {INDEX} names a {kind}")
  return config


def _tell_variants(
  networks: Mapping[str, tuple[Collection[str], Mapping[str, Any]]], variant: str | None
) -> None:
  """Tells which networks are read from another variant than was asked for."""
  others: dict[str | None, list[str]] = {}
  for name, (below, config) in networks.items():
    weights, chosen = weight_names.choose(below, weight_names.stem(config), variant)
    if weights and chosen != variant:
      others.setdefault(chosen, []).append(name)
  for chosen, names in others.items():
    if chosen is None:
      LOGGER.warning(
        "no weights of the variant %r of %s; those without a variant are read",
        variant,
        ", ".join(names),
      )
    else:
      LOGGER.warning("the only weights of %s are of the variant %r", ", ".join(names), chosen)


def _is_license(name: str) -> bool:
  return name.lower().startswith(LICENSES)


def _wanted(
  folder: paths.Path,
  names: Collection[str],
  variant: str | None,
  components: Collection[str] | None,
  networks: Collection[str] | None,
  *,
  weights: bool,
) -> list[str]:
  """Files of a repository that a pipeline is read from; `folder` has its index.

  `weights` says whether the weights of its networks are among them.
  """
  model_index = files.read_json(folder / INDEX)
  classes = components_of(model_index)
  networks, tokenizers = networks_of(model_index, networks), tokenizers_of(model_index)
  loaded = _selected(networks, components)
  weight_names.check_variant({name: _below(names, f"{name}/") for name in classes}, variant)
  wanted = [INDEX, *(name for name in names if "/" not in name and _is_license(name))]
  for component, (library, class_name) in classes.items():
    if components is not None and component not in (*networks, *tokenizers, SCHEDULER):
      continue
    prefix = f"{component}/"
    wanted += _beside_weights(names, prefix)
    described = {"_class_name" if library == "diffusers" else "architectures": [class_name]}
    if component in loaded:
      with files.located(component):
        chosen = _weights(names, prefix, described, variant)
      wanted += chosen if weights else []
    elif component not in networks:
      wanted += _passthrough_weights(names, prefix, variant)
  return wanted


def _below(names: Collection[str], prefix: str) -> list[str]:
  """Names of the files directly in a folder of a repository, without the folder's."""
  below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
  return [name for name in below if "/" not in name]


def _beside_weights(names: Collection[str], prefix: str) -> list[str]:
  """Configs and vocabularies in a folder of a repository."""
  return [
    prefix + name
    for name in _below(names, prefix)
    if name.endswith((".json", ".txt")) and ".index." not in name
  ]


def _weights(
  names: Collection[str], prefix: str, config: Mapping[str, Any], variant: str | None
) -> list[str]:
  below = _below(names, prefix)
  weights, _ = weight_names.choose(below, weight_names.stem(config), variant)
  if not weights:
    raise weight_names.explain_absence(below, config, variant, None)
  return [prefix + name for name in weights]


def _passthrough_weights(names: Collection[str], prefix: str, variant: str | None) -> list[str]:
  """Weights of a component that passes through."""
  below = _below(names, prefix)
  for stem in weight_names.STEMS:
    weights, _ = weight_names.choose(below, stem, variant)
    if weights:
      return [prefix + name for name in weights]
  pickled = [name for name in below if name.endswith(weight_names.PICKLES)]
  if pickled:
    raise InputError(
      f"{prefix} has pickled weights alone ({', '.join(pickled)}), which are not downloaded; "
      "download the repository yourself (huggingface_hub.snapshot_download) and give the folder, "
      "or name the networks to load in components"
    )
  return []
