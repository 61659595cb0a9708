"""Names of a LoRA's layers in files: peft's with dots, kohya's with underscores.

kohya's names exist for the components of Stable Diffusion; peft's are those of any component.
"""

import re
from collections.abc import Mapping

from dmpo_jax.models import trees

# Older files and peft's own state dicts of transformers 5 lack it.
TEXT_PREFIX = "text_model."

KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
KOHYA_XL = {**KOHYA, "text_encoder": "lora_te1", "text_encoder_3": "lora_te3"}
# Prefixes of kohya's trainer, of LyCORIS and of OneTrainer, all of which `load_lora` reads.
READ_PREFIXES = {
  "unet": ("lora_unet", "lycoris"),
  "transformer": ("lora_transformer", "lycoris"),
  "text_encoder": ("lora_te", "lora_te1"),
  "text_encoder_2": ("lora_te2",),
  "text_encoder_3": ("lora_te3",),
}
COMPONENTS = tuple(READ_PREFIXES)

# CLIP's projections -> their names in diffusers' attention processors.
CLIP_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}

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
    (component, layer) -> name, for every layer of the components in `KOHYA` that has one.
  """
  xl = is_xl(base)
  names = {}
  for component, prefix in (KOHYA_XL if xl else KOHYA).items():
    for layer in layers(base.get(component, {})):
      spelled = sgm_name(layer, base["unet"]) if xl and component == "unet" else layer
      if spelled is not None:
        names[component, layer] = f"{prefix}_{spelled}".replace(".", "_")
  return names


def kohya_header(base: Mapping[str, trees.Tree], rank: int) -> dict[str, str]:
  """The header of a LoRA in kohya's format; its alpha is the rank.

  AUTOMATIC1111 tells by ss_base_model_version and ss_v2 for which models it lists a LoRA, and takes
  a file with neither for one of SD1.5.

  Args:
    base: Component -> its tree.
    rank: The largest rank.

  Returns:
    Texts by name.
  """
  unet = trees.flatten(base.get("unet", {}))
  context = {leaf.shape[0] for name, leaf in unet.items() if name.endswith("attn2.to_k.kernel")}
  version = {768: "sd_v1", 1024: "sd_v2"}.get(max(context, default=0))
  if unet and is_xl(base):
    version = "sdxl_base_v1-0"
  header = {
    "format": "pt",
    "ss_network_alpha": str(rank),
    "ss_network_dim": str(rank),
    "ss_network_module": "networks.lora",
  }
  if version is not None:
    header |= {"ss_base_model_version": version, "ss_v2": str(version == "sd_v2")}
  return header


def sgm_name(layer: str, unet: trees.Tree) -> str | None:
  """A UNet layer's name in the original implementation of Stable Diffusion and SDXL.

  Args:
    layer: Dotted name, as in diffusers.
    unet: The network's tree.

  Returns:
    The dotted name; None if that implementation has no such layer. input_blocks count every
    residual block and down-sampler from 1, output_blocks every residual block from 0; an up-sampler
    belongs to the last block before it.
  """
  if layer in SGM_OUTER:
    return SGM_OUTER[layer]
  if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", layer):
    kind, index, rest = match.groups()
    place = 1 if kind == "attentions" else 2 * int(index)
    return f"middle_block.{place}.{_inner(kind, rest)}"
  match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.([a-z]+)\.(\d+)\.(.+)", layer)
  if match is None:
    return None
  side, block, kind, index, rest = match.groups()
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
  return SGM_RESNET.get(rest, rest) if kind == "resnets" else rest


def readable_names(base: Mapping[str, trees.Tree]) -> dict[str, list[tuple[str, str]]]:
  """Every spelling of a pipeline's layers that `load_lora` reads.

  Args:
    base: Component -> its tree.

  Returns:
    Spelling -> places (component, layer). Spellings are diffusers' names, with and without the
    component and text_model., also as its attention processors had them; kohya's, LyCORIS' and
    OneTrainer's with either set of block names and every prefix of the component; ComfyUI's. Only
    a name without a component can have several places.
  """
  table: dict[str, list[tuple[str, str]]] = {}
  for component, params in base.items():
    for layer in layers(params):
      place = component, layer
      for spelled in (layer, layer.removeprefix(TEXT_PREFIX)):
        for alias in dict.fromkeys((spelled, _processor_name(spelled))):
          table[f"{component}.{alias}"] = [place]
          table.setdefault(alias, [])
          if place not in table[alias]:
            table[alias].append(place)
      names = [layer]
      if component == "unet" and (original := sgm_name(layer, params)):
        names.append(original)
        table[f"diffusion_model.{original}"] = [place]
      for prefix in READ_PREFIXES.get(component, ()):
        for name in names:
          table[f"{prefix}_{name}".replace(".", "_")] = [place]
  return table


def _processor_name(layer: str) -> str:
  """A projection's name in diffusers' old attention processors, whose suffix _lora is removed."""
  name = layer.removesuffix(".0") if layer.endswith(".to_out.0") else layer
  before, dot, last = name.rpartition(".")
  if before.endswith("self_attn") and last in CLIP_PROJECTIONS:
    last = CLIP_PROJECTIONS[last]
  return f"{before}{dot}{last}"
