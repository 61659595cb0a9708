"""Pipeline folders in diffusers' layout: read into parameter trees, written whole or not at all."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import state_dict

if TYPE_CHECKING:
  from transformers import CLIPTokenizer

INDEX = "model_index.json"

# Component -> name of its weights file without the suffix, as diffusers and transformers have it.
NETWORKS = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS = {
  "unet": "config.json",
  "text_encoder": "config.json",
  "scheduler": "scheduler_config.json",
}

# Published text encoders carry this in front of their names, files by transformers 5 do not, and it
# reads both. Our trees have it.
TEXT_PREFIX = "text_model."

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """A text-to-image pipeline in memory.

  Attributes:
    model_index: The content of model_index.json: component -> [library, class].
    configs: "unet", "text_encoder" and "scheduler" -> the content of their config files.
    params: "unet" and "text_encoder" -> parameter tree.
    tokenizer: transformers' CLIPTokenizer, or None where the pipeline has none.
    carried: Other components (a VAE, a safety checker) -> the folders they lie in; they are copied
      unread when the pipeline is saved.
  """

  model_index: Mapping[str, Any]
  configs: Mapping[str, Mapping[str, Any]]
  params: Mapping[str, Mapping[str, Any]]
  tokenizer: CLIPTokenizer | None
  carried: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)


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
  for component in CONFIGS:
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
    "scheduler": ["diffusers", _class_name(scheduler, "scheduler")],
    "text_encoder": ["transformers", _class_name(configs["text_encoder"], "text_encoder")],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", _class_name(configs["unet"], "unet")],
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


def load_pipeline(folder: str | os.PathLike) -> Pipeline:
  """Reads a pipeline folder that diffusers or `save_pipeline` wrote.

  Args:
    folder: A folder with model_index.json, unet/, text_encoder/, scheduler/ and, unless
      model_index.json says null, tokenizer/. Weights are safetensors, in one file or in shards with
      an index, float32, float16 or bfloat16.

  Returns:
    A `Pipeline` with float32 numpy parameters. Components it does not know are carried by path.

  Raises:
    InputError: The folder is no pipeline, a component or file is missing, damaged or pickled, a
      config is not supported, or weights do not fit their config.
  """
  folder = pathlib.Path(folder)
  if not (folder / INDEX).is_file():
    raise InputError(
      f"{folder} is no pipeline folder: it has no {INDEX}; expected a local folder in diffusers' "
      "layout (unet/, text_encoder/, tokenizer/, scheduler/). Download one with "
      "huggingface_hub.snapshot_download, or write one with save_pipeline"
    )
  model_index = _read_json(folder / INDEX)
  components = {
    name: value
    for name, value in model_index.items()
    if isinstance(value, list) and len(value) == 2 and value[1] is not None
  }
  for component in CONFIGS:
    if component not in components:
      raise InputError(
        f"{folder / INDEX} names no {component!r}; it names {', '.join(components) or 'nothing'}"
      )
  for component in components:
    if not (folder / component).is_dir():
      raise InputError(
        f"{folder} has no {component}/, which its {INDEX} names; complete the folder, or set "
        f'"{component}": [null, null] there if the pipeline does without it'
      )
  configs = {name: _read_json(folder / name / file) for name, file in CONFIGS.items()}
  params = {
    name: _read_network(folder / name, stem, configs[name]) for name, stem in NETWORKS.items()
  }
  tokenizer = _read_tokenizer(folder / "tokenizer") if "tokenizer" in components else None
  carried = {
    name: (folder / name).absolute()
    for name in components
    if name not in CONFIGS and name != "tokenizer"
  }
  return Pipeline(model_index, configs, params, tokenizer, carried)


def save_pipeline(folder: str | os.PathLike, pipeline: Pipeline) -> None:
  """Writes a pipeline folder that diffusers loads; it appears whole or not at all.

  Everything is written to a hidden folder beside the target, which is then renamed. A pipeline that
  lies there already stays until the new one is complete. Of several processes, one must call this.

  Args:
    folder: The target: absent, empty, or a pipeline folder to replace.
    pipeline: The pipeline. Leaves are written in their own dtype (float32, float16 or bfloat16) and
      must fit the configs.

  Raises:
    InputError: The target is something else than a pipeline folder or cannot be made, a parameter
      has another name, shape or dtype than its config asks for, or a carried folder is gone.
  """
  folder = pathlib.Path(folder).resolve()
  occupied = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
  if occupied and not (folder / INDEX).is_file():
    raise InputError(
      f"{folder} exists and is no pipeline folder (no {INDEX}); choose another target or remove it"
    )
  token = uuid.uuid4().hex[:8]
  partial = folder.with_name(f".{folder.name}.{token}.partial")
  try:
    partial.mkdir(parents=True)
  except OSError as error:
    raise InputError(f"cannot write to {folder.parent}: {error}; choose another target") from error
  try:
    _write(partial, pipeline)
    _swap(partial, folder, folder.with_name(f".{folder.name}.{token}.old"))
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write(folder: pathlib.Path, pipeline: Pipeline) -> None:
  _write_json(folder / INDEX, pipeline.model_index)
  for name, file in CONFIGS.items():
    (folder / name).mkdir()
    _write_json(folder / name / file, pipeline.configs[name])
  for name, stem in NETWORKS.items():
    state = state_dict.to_torch_state(pipeline.params[name])
    with _source(f"{name} parameters"):
      state_dict.check_state(state, models.abstract(pipeline.configs[name]))
    # transformers before version 5 refuses a file that does not say for whom it is laid out.
    file = folder / name / f"{stem}.safetensors"
    safetensors.numpy.save_file(state, file, metadata={"format": "pt"})
    # safetensors makes its files readable for their owner alone.
    shutil.copymode(folder / name / CONFIGS[name], file)
  if pipeline.tokenizer is not None:
    _write_tokenizer(folder / "tokenizer", pipeline.tokenizer)
  for name, source in pipeline.carried.items():
    if not source.is_dir():
      raise InputError(f"{name} is to be copied from {source}, which is gone; load it again")
    shutil.copytree(source, folder / name)


def _swap(partial: pathlib.Path, folder: pathlib.Path, aside: pathlib.Path) -> None:
  """Renames `partial` to `folder`; what lies there steps aside first and is deleted last."""
  try:
    if folder.exists():
      folder.rename(aside)
    partial.rename(folder)
  finally:
    if aside.exists() and not folder.exists():
      aside.rename(folder)
  if aside.exists():
    shutil.rmtree(aside)


def _read_network(folder: pathlib.Path, stem: str, config: Mapping[str, Any]) -> dict[str, Any]:
  with _source(folder):
    abstract = models.abstract(config)
    state = _open_weights(folder, stem, _class_name(config, folder))
    expected = state_dict.torch_names(abstract)
    aligned = {
      f"{TEXT_PREFIX}{name}" if f"{TEXT_PREFIX}{name}" in expected else name: entry
      for name, entry in state.items()
    }
    if len(aligned) < len(state):
      raise InputError(f"some parameters are there both with and without {TEXT_PREFIX!r}")
    return state_dict.from_torch_state(aligned, abstract)


class _Entry(NamedTuple):
  """A tensor in an open safetensors file, read when an array is asked for."""

  file: safetensors.safe_open
  name: str

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(self.file.get_slice(self.name).get_shape())

  @property
  def dtype(self) -> str:
    stored = self.file.get_slice(self.name).get_dtype()
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(stored, stored)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self.file.get_tensor(self.name), dtype=dtype, copy=copy)


def _open_weights(folder: pathlib.Path, stem: str, class_name: str) -> dict[str, _Entry]:
  """The tensors of `stem`.safetensors, or of the shards that its index names."""
  single = folder / f"{stem}.safetensors"
  index = folder / f"{stem}.safetensors.index.json"
  if single.is_file():
    files = [single]
  elif index.is_file():
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
      raise InputError(f"{index.name} names no shards: it has no weight_map; download it again")
    files = [folder / name for name in sorted(set(shards.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
      raise InputError(f"{index.name} names shards that are not there: {', '.join(absent)}")
  else:
    raise InputError(_no_weights(folder, single.name, class_name))
  entries = {}
  for file in files:
    try:
      opened = safetensors.safe_open(file, framework="numpy")
    except safetensors.SafetensorError as error:
      raise InputError(
        f"{file.name} is damaged or cut short ({error}); download or export it again"
      ) from error
    entries.update({name: _Entry(opened, name) for name in opened.keys()})  # noqa: SIM118
  return entries


def _no_weights(folder: pathlib.Path, wanted: str, class_name: str) -> str:
  found = sorted(file.name for file in folder.iterdir())
  pickled = [name for name in found if name.endswith(PICKLES)]
  if not pickled:
    return f"no {wanted}; the folder holds {', '.join(found) or 'nothing'}"
  library = "diffusers" if wanted.startswith("diffusion") else "transformers"
  return (
    f"the weights are pickled ({', '.join(pickled)}), and unpickling can run any code, so only "
    f"safetensors are read. If you trust the file, convert it once, with torch installed:\n"
    f'  python -c "from {library} import {class_name} as M; '
    f"M.from_pretrained({str(folder)!r}, use_safetensors=False)"
    f'.save_pretrained({str(folder)!r})"'
  )


def _class_name(config: Mapping[str, Any], where: object) -> str:
  """The class a config names: diffusers' `_class_name`, transformers' first of `architectures`."""
  name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
  if not isinstance(name, str):
    raise InputError(f"{where}: the config names no class (_class_name or architectures)")
  return name


@contextlib.contextmanager
def _source(where: object) -> Iterator[None]:
  """Puts the place in front of the message of an InputError."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  if not file.is_file():
    raise InputError(f"{file} is missing; complete the folder or export the pipeline again")
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{file} is no valid JSON: {error}") from error
  if not isinstance(content, dict):
    raise InputError(f"{file} holds a {type(content).__name__}, expected a JSON object")
  return content


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  try:
    text = json.dumps(dict(content), indent=2, sort_keys=True)
  except TypeError as error:
    raise InputError(f"{file.parent.name}/{file.name} cannot be written: {error}") from error
  file.write_text(text + "\n", encoding="utf-8")


def _read_tokenizer(folder: pathlib.Path) -> CLIPTokenizer:
  from transformers import CLIPTokenizer

  files = [folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()]
  if not files:
    raise InputError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json is there")
  for file in files:
    _read_json(file)
  return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _write_tokenizer(folder: pathlib.Path, tokenizer: CLIPTokenizer) -> None:
  # A call leaves its padding and truncation behind in the tokenizer, and they would be saved.
  tokenizer = copy.deepcopy(tokenizer)
  tokenizer.backend_tokenizer.no_padding()
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.save_pretrained(folder)
  # vocab.json and merges.txt, which readers before transformers 5 want.
  tokenizer.backend_tokenizer.model.save(str(folder))
