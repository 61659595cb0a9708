"""LoRA files of diffusers, of peft and of kohya's trainer, read and written."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.errors import InputError
from dmpo_jax.interop import lora_config, lora_file, lora_mmdit, lora_names, state_dict
from dmpo_jax.interop.lora_layers import read_layers
from dmpo_jax.models import lora as loras
from dmpo_jax.models import trees

KOHYA_COMPONENTS = (lora_mmdit.COMPONENT, *lora_names.KOHYA_XL)

# Alphas beyond this are no strength but a mistake.
MAX_ALPHA = 1e6


log = logging.getLogger(__name__)


class Lora(NamedTuple):
  """LoRAs for networks of a pipeline.

  Attributes:
    params: Component ("unet", "text_encoder", "text_encoder_2") -> LoRA tree.
    alphas: Component -> alpha for `models.lora.merge`: a number, or one for each layer.
  """

  params: Mapping[str, trees.Tree]
  alphas: Mapping[str, loras.Alpha]


class _Part(NamedTuple):
  """The LoRA of one network as it is written: the strength is in the factors, one rank for all."""

  layers: dict[str, tuple[np.ndarray, np.ndarray]]
  rank: int


def save_lora(
  file: str | os.PathLike,
  lora: Lora,
  base: Mapping[str, trees.Tree],
  *,
  dtype: str | None = None,
) -> None:
  """Writes a LoRA that diffusers' `load_lora_weights` reads; it appears whole or not at all.

  Entries have peft's names, `unet.{layer}.lora_A.weight` [r, I] and `lora_B.weight` [O, r]
  (convolutions [r, I, k, k] and [O, r, 1, 1]). The strength is in the factors: `lora_B` is
  multiplied by alpha / r, and the header's alpha is r, so that a reader that ignores the header
  applies the same. Layers of a smaller rank are filled with zeros to the largest of their network,
  because diffusers before 0.42 has one strength for all.

  Args:
    file: The target, *.safetensors; diffusers' default is pytorch_lora_weights.safetensors.
    lora: The LoRA.
    base: Component -> tree of the network that it adapts (`Pipeline.params`, or abstract).
    dtype: float32, float16 or bfloat16; None: that of each leaf.

  Raises:
    InputError: The LoRA does not fit the base (all differences are listed), or a value is no number
      of the dtype.
    OSError: The file cannot be written.
  """
  state, fields = {}, {}
  for component, part in _checked(lora, base, dtype).items():
    for layer, (down, up) in part.layers.items():
      state[f"{component}.{layer}.lora_A.weight"] = _torch_down(down)
      state[f"{component}.{layer}.lora_B.weight"] = _torch_up(up, down.ndim)
    config = lora_config.peft_config(part.rank, part.layers)
    fields |= {f"{component}.{field}": value for field, value in config.items()}
  lora_file.write(paths.parse(file), state, {lora_config.METADATA: lora_config.header(fields)})


def save_kohya_lora(
  file: str | os.PathLike,
  lora: Lora,
  base: Mapping[str, trees.Tree],
  *,
  dtype: str | None = None,
) -> None:
  """Writes a LoRA in the format of kohya's trainer, for ComfyUI, AUTOMATIC1111 and others.

  Entries are `lora_unet_{layer}.lora_down.weight`, `.lora_up.weight` and `.alpha`, with underscores
  for dots. Text encoders are lora_te, or lora_te1 and lora_te2 for SDXL, whose UNet has its
  original block names, as has the transformer of SD3, where query, key and value are one layer. The
  strength is in the factors, as in `save_lora`: alpha is the rank.

  Args:
    file: The target, *.safetensors.
    lora: The LoRA.
    base: Component -> tree of the network that it adapts; with the UNet if the LoRA has one.
    dtype: float32, float16 or bfloat16; None: that of each leaf.

  Raises:
    InputError: The LoRA does not fit the base (all differences are listed), has a component or a
      layer that kohya's files have no name for, or a value is no number of the dtype.
    OSError: The file cannot be written.
  """
  names = lora_names.kohya_names(base)
  factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  for component, part in _checked(lora, base, dtype).items():
    unnamed = [layer for layer in part.layers if (component, layer) not in names]
    if component == lora_mmdit.COMPONENT:
      joined, unnamed = lora_mmdit.join(part.layers, base[component])
      factors |= {f"lora_unet_{k}".replace(".", "_"): pair for k, pair in joined.items()}
    if unnamed:
      raise InputError(
        f"kohya's files have no name for {component}.{unnamed[0]}; they hold "
        f"{', '.join(KOHYA_COMPONENTS)}"
      )
    if component != lora_mmdit.COMPONENT:
      factors |= {names[component, layer]: pair for layer, pair in part.layers.items()}
  state = {}
  for name, (down, up) in factors.items():
    state[f"{name}.lora_down.weight"] = _torch_down(down)
    state[f"{name}.lora_up.weight"] = _torch_up(up, down.ndim)
    state[f"{name}.alpha"] = np.asarray(up.shape[0], np.float32)
  rank = max(up.shape[0] for _, up in factors.values())
  lora_file.write(paths.parse(file), state, lora_names.kohya_header(base, rank))


def kohya_holds(components: Iterable[str]) -> bool:
  """Whether kohya's files have a place for LoRAs of these components."""
  return set(components) <= set(KOHYA_COMPONENTS)


def load_lora(file: str | os.PathLike, base: Mapping[str, trees.Tree]) -> Lora:
  """Reads a LoRA that dmpo_jax, diffusers, peft or kohya's trainer wrote.

  A layer's alpha is that of the config in the header or of peft's adapter_config.json beside the
  file (lora_alpha, alpha_pattern, use_rslora), else that of an entry `{layer}.alpha`, else the
  layer's rank, as in diffusers.

  Args:
    file: A safetensors file, a folder with one, or a folder with a folder of peft's for each
      component.
    base: Component -> tree of the network it is for (`Pipeline.params`, or abstract).

  Returns:
    A `Lora` of numpy arrays in the file's dtypes, alphas by layer.

  Raises:
    InputError: The file is missing, damaged or pickled, is of a method other than plain LoRA, or
      does not fit the base; everything that does not fit is listed.
  """
  path = paths.parse(file)
  if folders := lora_file.component_folders(path, lora_names.COMPONENTS):
    unknown = sorted(folders.keys() - base.keys())
    if unknown:
      raise InputError(f"{path} has a LoRA for {', '.join(unknown)}, which the pipeline lacks")
    parts = [load_lora(folder, {name: base[name]}) for name, folder in folders.items()]
    params = {name: tree for part in parts for name, tree in part.params.items()}
    return Lora(params, {name: alpha for part in parts for name, alpha in part.alphas.items()})
  path = lora_file.locate(path)
  state, header = lora_file.read(path)
  configs = lora_config.read_configs(path, header, peft=lora_file.is_peft(path, state))
  flat: dict[str, dict[str, Any]] = {}
  alphas: dict[str, dict[str, float]] = {}
  layers, problems = read_layers(lora_mmdit.split(state, base), base)
  for (component, layer), factors in layers.items():
    try:
      alpha = _alpha(configs, component, layer, factors.down.shape[-1], factors.alpha)
    except InputError as error:
      problems.append(f"{component}.{layer}: {error}")
      continue
    flat.setdefault(component, {})[f"{layer}.down"] = factors.down
    flat[component][f"{layer}.up"] = factors.up
    alphas.setdefault(component, {})[layer] = alpha
  if problems or not flat:
    raise InputError(
      f"{path} is no LoRA for this pipeline:{_listed(problems or ['it has no entries'])}"
    )
  if not any(alphas[c][layer] and np.any(f.up) for (c, layer), f in layers.items()):
    log.warning("%s has no effect: its up factors or its alphas are zero", path)
  return Lora({name: trees.unflatten(leaves) for name, leaves in flat.items()}, alphas)


def _alpha(
  configs: Mapping[str, lora_config.LoraConfig],
  component: str,
  layer: str,
  rank: int,
  entry: float | None,
) -> float:
  """The alpha of a layer; see `load_lora`."""
  config = configs.get(component, configs.get(""))
  stated = None if config is None else config.alpha_of(layer, rank)
  if stated is None or entry is None or stated == entry:
    alpha = rank if stated is None and entry is None else entry if stated is None else stated
    return float(alpha)
  raise InputError(f"alpha is {stated:g} in the header and {entry:g} as an entry")


def _listed(problems: list[str], limit: int = 20) -> str:
  more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
  return "".join(f"\n  {problem}" for problem in [*problems[:limit], *more])


def _checked(lora: Lora, base: Mapping[str, trees.Tree], dtype: str | None) -> dict[str, _Part]:
  """Component -> what is written of it, after a check that the LoRA fits the base."""
  dtype = state_dict.float_name(dtype)
  if not lora.params:
    raise InputError("the LoRA names no component; params is empty")
  parts = {}
  for component, tree in lora.params.items():
    if component not in base or component not in lora.alphas:
      where = "the base" if component not in base else "alphas"
      raise InputError(f"the LoRA is for {component!r}, which {where} does not have")
    layers = loras.layers_of(tree)
    loras.check(layers, base[component])
    alphas = lora.alphas[component]
    if not isinstance(alphas, Mapping):
      alphas = dict.fromkeys(layers, alphas)
    if alphas.keys() != layers.keys():
      raise InputError(
        f"{component}: alphas must name each layer of the LoRA and no other; these differ: "
        f"{', '.join(sorted(alphas.keys() ^ layers.keys()))}"
      )
    wrong = [
      f"{component}.{layer} is {leaf.dtype}"
      for layer, pair in layers.items()
      for leaf in pair
      if str(leaf.dtype) not in state_dict.FLOATS
    ]
    if wrong:
      raise InputError(f"expected {' or '.join(state_dict.FLOATS)}: {', '.join(wrong)}")
    rank = max(up.shape[0] for _, up in layers.values())
    parts[component] = _Part(
      {
        layer: _folded(pair, float(alphas[layer]), rank, dtype, f"{component}.{layer}")
        for layer, pair in layers.items()
      },
      rank,
    )
  return parts


def _folded(
  pair: tuple[Any, Any], alpha: float, rank: int, dtype: str | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Factors whose product is the update: up times alpha / r, filled with zeros to a rank.

  The product is in float32 and is rounded once to the dtype.
  """
  if not abs(alpha) <= MAX_ALPHA:
    raise InputError(f"{name}: alpha is {alpha}, expected a number of at most {MAX_ALPHA:g}")
  down, up = (np.asarray(leaf) for leaf in pair)
  fill = rank - up.shape[0]
  scale = np.float32(alpha / up.shape[0])
  scaled = up if scale == 1 else up.astype(np.float32) * scale
  result = []
  for leaf, like, widths in (
    (down, down, [(0, 0)] * (down.ndim - 1) + [(0, fill)]),
    (scaled, up, [(0, fill), (0, 0)]),
  ):
    if not np.isfinite(leaf).all():
      raise InputError(f"{name} has values that are not finite; nothing is written")
    leaf = state_dict.cast(leaf, dtype or str(like.dtype), name)
    result.append(np.pad(leaf, widths) if fill else leaf)
  return result[0], result[1]


def _torch_down(down: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(down.transpose(down.ndim - 1, down.ndim - 2, *range(down.ndim - 2)))


def _torch_up(up: np.ndarray, ndim: int) -> np.ndarray:
  return np.ascontiguousarray(up.T.reshape(*up.T.shape, *[1] * (ndim - 2)))
