"""LoRA files of diffusers and of kohya's trainer, written and read."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError
from dmpo_jax.interop import lora_names, state_dict
from dmpo_jax.models import lora as loras
from dmpo_jax.models import trees

# Header entry in which diffusers stores the fields of peft's LoraConfig.
METADATA = "lora_adapter_metadata"

# Names of the two factors, without `.weight`: peft's, those of diffusers' scripts in the UNet and
# in text encoders, kohya's.
DOWN = ("lora_A", "lora.down", "lora_linear_layer.down", "lora_down")
UP = ("lora_B", "lora.up", "lora_linear_layer.up", "lora_up")
ENTRY = re.compile(
  rf"(?P<layer>.+)\.(?:(?P<down>{'|'.join(map(re.escape, DOWN))})\.weight"
  rf"|(?P<up>{'|'.join(map(re.escape, UP))})\.weight|(?P<alpha>alpha))"
)

# Other methods, whose update is not (alpha / r) up down.
OTHER_METHODS = ("use_dora", "use_rslora", "lora_bias")


class Lora(NamedTuple):
  """LoRAs for networks of a pipeline.

  Attributes:
    params: Component ("unet", "text_encoder", "text_encoder_2") -> LoRA tree.
    alphas: Component -> alpha for `models.lora.merge`: a number, or one for each layer.
  """

  params: Mapping[str, trees.Tree]
  alphas: Mapping[str, loras.Alpha]


def save_lora(file: str | os.PathLike, lora: Lora, base: Mapping[str, trees.Tree]) -> None:
  """Writes a LoRA that diffusers' `load_lora_weights` reads; it appears whole or not at all.

  Entries have peft's names, `unet.{layer}.lora_A.weight` [r, I] and `lora_B.weight` [O, r]
  (convolutions [r, I, k, k] and [O, r, 1, 1]). Ranks and alphas are in the header; old versions of
  diffusers ignore it and use alpha = rank.

  Args:
    file: The target, *.safetensors; diffusers' default is pytorch_lora_weights.safetensors.
    lora: The LoRA; leaves are written in their own dtype (float32, float16 or bfloat16).
    base: Component -> tree of the network that it adapts (`Pipeline.params`, or abstract).

  Raises:
    InputError: The LoRA does not fit the base (all differences are listed), a dtype is not one of
      the three, or the file cannot be written.
  """
  state, fields = {}, {}
  for component, (layers, alphas) in _checked(lora, base).items():
    for layer, (down, up) in layers.items():
      state[f"{component}.{layer}.lora_A.weight"] = _torch_down(down)
      state[f"{component}.{layer}.lora_B.weight"] = _torch_up(up, down.ndim)
    ranks = {layer: up.shape[0] for layer, (_, up) in layers.items()}
    config = lora_names.peft_config(ranks, alphas)
    fields |= {f"{component}.{field}": value for field, value in config.items()}
  # One entry alone: safetensors shuffles several, and equal LoRAs shall be equal files.
  header = {METADATA: json.dumps(fields, indent=2, sort_keys=True)}
  _write(pathlib.Path(file), state, header)


def save_kohya_lora(file: str | os.PathLike, lora: Lora, base: Mapping[str, trees.Tree]) -> None:
  """Writes a LoRA in the format of kohya's trainer, for ComfyUI, AUTOMATIC1111 and others.

  Entries are `lora_unet_{layer}.lora_down.weight`, `.lora_up.weight` and `.alpha`, with underscores
  for dots. Text encoders are lora_te, or lora_te1 and lora_te2 for SDXL, whose UNet has its
  original block names. diffusers (0.42) reads these files too, but where alphas differ it applies
  one of them to all attention layers.

  Args:
    file: The target, *.safetensors.
    lora: The LoRA; leaves are written in their own dtype (float32, float16 or bfloat16).
    base: Component -> tree of the network that it adapts; with the UNet if the LoRA has one.

  Raises:
    InputError: The LoRA does not fit the base (all differences are listed), has a component that
      kohya's files have no place for, a dtype is not one of the three, or the file cannot be
      written.
  """
  names = lora_names.kohya_names(base)
  state = {}
  for component, (layers, alphas) in _checked(lora, base).items():
    if component not in lora_names.KOHYA:
      raise InputError(
        f"kohya's files have no place for {component!r}; they hold {', '.join(lora_names.KOHYA)}"
      )
    for layer, (down, up) in layers.items():
      name = names[component, layer]
      state[f"{name}.lora_down.weight"] = _torch_down(down)
      state[f"{name}.lora_up.weight"] = _torch_up(up, down.ndim)
      state[f"{name}.alpha"] = np.asarray(alphas[layer], np.float32)
  _write(pathlib.Path(file), state, {"format": "pt"})


def load_lora(file: str | os.PathLike, base: Mapping[str, trees.Tree]) -> Lora:
  """Reads a LoRA that `save_lora`, `save_kohya_lora`, diffusers, peft or kohya wrote.

  A layer's alpha is that of the header (lora_alpha and alpha_pattern), else that of an entry
  `{layer}.alpha`, else the layer's rank, as in diffusers.

  Args:
    file: A safetensors file.
    base: Component -> tree of the network it is for (`Pipeline.params`, or abstract).

  Returns:
    A `Lora` of numpy arrays in the file's dtypes, alphas by layer.

  Raises:
    InputError: The file is missing, damaged or pickled, is of a method other than plain LoRA, or
      does not fit the base; everything that does not fit is listed.
  """
  path = pathlib.Path(file)
  state, metadata = _read(path)
  names = lora_names.readable_names(base)
  factors: dict[tuple[str, str], dict[str, Any]] = {}
  problems = []
  for entry, array in state.items():
    match = ENTRY.fullmatch(entry)
    if match is None:
      problems.append(f"{entry}: no entry of a plain LoRA")
    elif match["layer"] not in names:
      problems.append(f"{entry}: the base has no such linear layer or convolution")
    else:
      layer = factors.setdefault(names[match["layer"]], {})
      role = match.lastgroup
      if role in layer:
        problems.append(f"{entry}: the file has this factor twice")
      layer[role] = array
  params: dict[str, dict[str, Any]] = {}
  alphas: dict[str, dict[str, float]] = {}
  layers: dict[str, dict[str, Any]] = {}
  for (component, layer), arrays in factors.items():
    try:
      down, up = _from_torch(arrays)
      alpha = _alpha(metadata, component, layer, up.shape[0], arrays.get("alpha"))
    except InputError as error:
      problems.append(f"{component}.{layer}: {error}")
      continue
    layers.setdefault(component, {})[layer] = down, up
    params.setdefault(component, {}).update({f"{layer}.down": down, f"{layer}.up": up})
    alphas.setdefault(component, {})[layer] = alpha
  for component, pairs in layers.items():
    misfits = loras.mismatches(pairs, base[component])
    problems += [f"{component}.{misfit}" for misfit in misfits]
  if problems or not params:
    lines = "".join(f"\n  {problem}" for problem in problems or ["it has no entries"])
    raise InputError(f"{path} is no LoRA for this pipeline:{lines}")
  return Lora({name: trees.unflatten(flat) for name, flat in params.items()}, alphas)


def _checked(
  lora: Lora, base: Mapping[str, trees.Tree]
) -> dict[str, tuple[dict[str, tuple[Any, Any]], dict[str, float]]]:
  """Component -> (layers, alphas by layer), after a check that they fit the base."""
  if not lora.params:
    raise InputError("the LoRA names no component; params is empty")
  checked = {}
  for component, tree in lora.params.items():
    if component not in base or component not in lora.alphas:
      where = "the base" if component not in base else "alphas"
      raise InputError(f"the LoRA is for {component!r}, which {where} does not have")
    layers = loras.layers_of(tree)
    loras.check(layers, base[component])
    alpha = lora.alphas[component]
    if not isinstance(alpha, Mapping):
      alpha = dict.fromkeys(layers, alpha)
    if alpha.keys() != layers.keys():
      raise InputError(
        f"{component}: alphas must name each layer of the LoRA and no other; these differ: "
        f"{', '.join(sorted(alpha.keys() ^ layers.keys()))}"
      )
    wrong = [
      f"{component}.{layer} is {leaf.dtype}"
      for layer, pair in layers.items()
      for leaf in pair
      if str(leaf.dtype) not in state_dict.FLOATS
    ]
    if wrong:
      raise InputError(f"expected {' or '.join(state_dict.FLOATS)}: {', '.join(wrong)}")
    numbers = {layer: float(value) for layer, value in alpha.items()}
    whole = {k: int(v) if v.is_integer() else v for k, v in numbers.items()}
    checked[component] = layers, whole
  return checked


def _torch_down(down: Any) -> np.ndarray:
  down = np.asarray(down)
  return np.ascontiguousarray(down.transpose(down.ndim - 1, down.ndim - 2, *range(down.ndim - 2)))


def _torch_up(up: Any, ndim: int) -> np.ndarray:
  transposed = np.asarray(up).T
  return np.ascontiguousarray(transposed.reshape(*transposed.shape, *[1] * (ndim - 2)))


def _from_torch(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Torch's two factors, [r, I(, k, k)] and [O, r(, 1, 1)], in our layout."""
  down, up = arrays.get("down"), arrays.get("up")
  if down is None or up is None:
    raise InputError("needs both factors, down (lora_A) and up (lora_B)")
  fits = down.ndim in (2, 4) and up.ndim == down.ndim and up.shape[1] == down.shape[0]
  if not fits or up.shape[2:] != (1,) * (up.ndim - 2):
    raise InputError(
      f"factors {list(down.shape)} and {list(up.shape)}; expected [r, I] and [O, r], or "
      "[r, I, k, k] and [O, r, 1, 1]"
    )
  wrong = [str(x.dtype) for x in (down, up) if str(x.dtype) not in state_dict.FLOATS]
  if wrong:
    raise InputError(f"is {wrong[0]}; expected {' or '.join(state_dict.FLOATS)}")
  inner = down.transpose(*range(2, down.ndim), 1, 0)
  return np.ascontiguousarray(inner), np.ascontiguousarray(up.reshape(up.shape[:2]).T)


def _alpha(
  metadata: Mapping[str, Any], component: str, layer: str, rank: int, entry: np.ndarray | None
) -> float:
  prefix = f"{component}."
  config = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
  other = [name for name in OTHER_METHODS if config.get(name)]
  if other:
    raise InputError(f"the header says {other[0]}; only plain LoRA is read")
  if "lora_alpha" not in config:
    return float(rank) if entry is None else float(entry.reshape(-1)[0])
  if entry is not None:
    raise InputError("alpha is stated twice, in the header and as an entry")
  listed = {}
  for kind, default in (("rank", config.get("r", rank)), ("alpha", config["lora_alpha"])):
    patterns = config.get(f"{kind}_pattern") or {}
    pattern = lora_names.peft_pattern(patterns, layer)
    listed[kind] = default if pattern is None else patterns[pattern]
  if listed["rank"] != rank:
    raise InputError(f"the header says rank {listed['rank']}, the factors have {rank}")
  return float(listed["alpha"])


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The entries of a file, and the fields of peft's LoraConfig in its header."""
  if not path.is_file():
    raise InputError(f"{path} is no file; expected a LoRA in a .safetensors file")
  if path.suffix in (".bin", ".ckpt", ".pt", ".pth"):
    raise InputError(
      f"{path} is pickled, and unpickling can run any code, so only safetensors are read. If you "
      "trust it, load it with torch.load and write it with safetensors.torch.save_file"
    )
  try:
    with safetensors.safe_open(path, framework="numpy") as opened:
      header = opened.metadata() or {}
      state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, TypeError) as error:
    raise InputError(f"{path} is damaged or no safetensors file ({error})") from error
  try:
    metadata = json.loads(header.get(METADATA, "{}"))
  except ValueError as error:
    raise InputError(f"{path}: {METADATA} in its header is no valid JSON: {error}") from error
  if not isinstance(metadata, dict):
    raise InputError(f"{path}: {METADATA} in its header is no JSON object")
  return state, metadata


def _write(file: pathlib.Path, state: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
  if file.suffix != ".safetensors":
    raise InputError(f"{file} must be named *.safetensors; readers go by the suffix")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not save_file, which makes files that their owner alone can read.
    write_atomically(file, safetensors.numpy.save(state, metadata=metadata))
  except OSError as error:
    raise InputError(f"cannot write {file}: {error}; choose another target") from error
