"""Names of a LoRA's layers in files: peft's with dots, kohya's with underscores.

kohya's names exist for the components of Stable Diffusion; peft's are those of any component.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dmpo_jax.models import trees

# Older files and peft's own state dicts of transformers 5 lack it.
TEXT_PREFIX = "text_model."

KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
KOHYA_XL = {**KOHYA, "text_encoder": "lora_te1"}

# Original names of layers outside the blocks, and of those in a residual block, of SDXL's UNet.
SGM_OUTER = {
  "conv_in": "input_blocks.0.0",
  "conv_out": "out.2",
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  "add_embedding.linear_1": "label_emb.0.0",
  "add_embedding.linear_2": "label_emb.0.2",
}
SGM_RESNET = {
  "conv1": "in_layers.2",
  "conv2": "out_layers.3",
  "time_emb_proj": "emb_layers.1",
  "conv_shortcut": "skip_connection",
}


def layers(params: trees.Tree) -> list[str]:
  """The dotted names of a network's linear layers and convolutions."""
  return [name[: -len(".kernel")] for name in trees.flatten(params) if name.endswith(".kernel")]


def is_xl(base: Mapping[str, trees.Tree]) -> bool:
  """True for SDXL's networks: a second text encoder, or a UNet with micro-conditioning."""
  return "text_encoder_2" in base or "add_embedding" in base.get("unet", {})


def kohya_names(base: Mapping[str, trees.Tree]) -> dict[tuple[str, str], str]:
  """Names of a pipeline's layers in the files of kohya's trainer.

  It trains SD1.5 and SD2.1 on diffusers' UNet and SDXL on the original one, whose blocks are
  numbered consecutively: input_blocks, middle_block, output_blocks. ComfyUI and diffusers read
  both.

  Args:
    base: Component -> its tree, of arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    (component, layer) -> name, for every layer of the components in `KOHYA`.
  """
  xl = is_xl(base)
  names = {}
  for component, prefix in (KOHYA_XL if xl else KOHYA).items():
    for layer in layers(base.get(component, {})):
      spelled = sgm_name(layer, base["unet"]) if xl and component == "unet" else layer
      names[component, layer] = f"{prefix}_{spelled}".replace(".", "_")
  return names


def sgm_name(layer: str, unet: trees.Tree) -> str:
  """A UNet layer's name in the original implementation of SDXL.

  Args:
    layer: Dotted name, as in diffusers.
    unet: The network's tree.

  Returns:
    The dotted name. input_blocks count every residual block and down-sampler from 1, output_blocks
    every residual block from 0; an up-sampler belongs to the last block before it.
  """
  if layer in SGM_OUTER:
    return SGM_OUTER[layer]
  if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", layer):
    kind, index, rest = match.groups()
    place = 1 if kind == "attentions" else 2 * int(index)
    return f"middle_block.{place}.{_inner(kind, rest)}"
  side, block, kind, index, rest = re.fullmatch(
    r"(down|up)_blocks\.(\d+)\.([a-z]+)\.(\d+)\.(.+)", layer
  ).groups()
  blocks = unet[f"{side}_blocks"]
  before = [len(blocks[str(i)]["resnets"]) for i in range(int(block))]
  here = blocks[block]
  if side == "down":
    place = 1 + sum(before) + len(before) + int(index)
    if kind == "downsamplers":
      return f"input_blocks.{place + len(here['resnets'])}.0.op"
    return f"input_blocks.{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
  place = sum(before) + int(index)
  if kind == "upsamplers":
    last = sum(before) + len(here["resnets"]) - 1
    return f"output_blocks.{last}.{2 if 'attentions' in here else 1}.{rest}"
  return f"output_blocks.{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
  return SGM_RESNET[rest] if kind == "resnets" else rest


def readable_names(base: Mapping[str, trees.Tree]) -> dict[str, tuple[str, str]]:
  """Every spelling of a pipeline's layers that `load_lora` reads.

  Args:
    base: Component -> its tree.

  Returns:
    Spelling -> (component, layer): peft's with and without text_model., and kohya's with either
    set of block names and either prefix of the first text encoder.
  """
  table: dict[str, tuple[str, str]] = {}
  for component, params in base.items():
    for layer in layers(params):
      for spelled in (layer, layer.removeprefix(TEXT_PREFIX)):
        table[f"{component}.{spelled}"] = component, layer
      for prefix in {p[component] for p in (KOHYA, KOHYA_XL) if component in p}:
        table[f"{prefix}_{layer}".replace(".", "_")] = component, layer
  table |= {name: place for place, name in kohya_names(base).items()}
  return table


def peft_pattern(patterns: Iterable[str], layer: str) -> str | None:
  """The first of peft's patterns that matches a layer's name to its end, or None."""
  spellings = (layer, layer.removeprefix(TEXT_PREFIX))
  for pattern in patterns:
    if any(re.match(rf"(.*\.)?({pattern})$", name) for name in spellings):
      return pattern
  return None


def peft_config(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
  """The fields of peft's LoraConfig for a LoRA: the commonest rank and alpha, and exceptions.

  Args:
    ranks: Layer -> rank.
    alphas: Layer -> alpha.

  Returns:
    A JSON object. Names lack text_model., so that they match torch's modules with and without it.
  """
  rank, alpha = (_commonest(values.values()) for values in (ranks, alphas))
  short = {layer: layer.removeprefix(TEXT_PREFIX) for layer in ranks}
  return {
    "r": rank,
    "lora_alpha": alpha,
    "target_modules": sorted(short.values()),
    "rank_pattern": {short[k]: v for k, v in ranks.items() if v != rank},
    "alpha_pattern": {short[k]: v for k, v in alphas.items() if v != alpha},
  }


def _commonest(values: Iterable[float]) -> float:
  values = list(values)
  return max(sorted(set(values)), key=values.count)
