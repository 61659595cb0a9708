"""LoRAs of SD3's transformer in the names of its original implementation, as kohya's trainer has.

That implementation has one layer for query, key and value where diffusers has three, and states
shift before scale in the norms at its end where diffusers states scale first.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dmpo_jax.interop import lora_entries, lora_names
from dmpo_jax.models import trees

COMPONENT = "transformer"

_OUTER = {
  "x_embedder.proj": "pos_embed.proj",
  "context_embedder": "context_embedder",
  "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
  "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
  "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
  "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
  "final_layer.linear": "proj_out",
  "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_BLOCK = {
  "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
  "x_block.attn.proj": ("attn.to_out.0",),
  "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
  "x_block.attn2.proj": ("attn2.to_out.0",),
  "x_block.mlp.fc1": ("ff.net.0.proj",),
  "x_block.mlp.fc2": ("ff.net.2",),
  "x_block.adaLN_modulation.1": ("norm1.linear",),
  "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
  "context_block.attn.proj": ("attn.to_add_out",),
  "context_block.mlp.fc1": ("ff_context.net.0.proj",),
  "context_block.mlp.fc2": ("ff_context.net.2",),
  "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}


class Original(NamedTuple):
  """A layer of the original implementation.

  Attributes:
    layers: Its parts in diffusers, in the order of its outputs.
    swapped: Whether diffusers has the halves of the outputs in the other order.
  """

  layers: tuple[str, ...]
  swapped: bool


def originals(params: trees.Tree) -> dict[str, Original]:
  """The layers of the original implementation by dotted name.

  Args:
    params: The transformer's tree, of arrays or `jax.ShapeDtypeStruct`s.
  """
  known = set(lora_names.layers(params))
  table = {name: Original((layer,), layer == "norm_out.linear") for name, layer in _OUTER.items()}
  blocks = sorted(params.get("transformer_blocks", {}), key=int)
  for i in blocks:
    for name, parts in _BLOCK.items():
      layers = tuple(f"transformer_blocks.{i}.{part}" for part in parts)
      # The last block has no further use for the text; its norm only shifts and scales.
      last = i == blocks[-1] and name == "context_block.adaLN_modulation.1"
      table[f"joint_blocks.{i}.{name}"] = Original(layers, last)
  return {name: entry for name, entry in table.items() if known.issuperset(entry.layers)}


def split(state: Mapping[str, np.ndarray], base: Mapping[str, trees.Tree]) -> dict[str, np.ndarray]:
  """A LoRA file's entries with diffusers' names where they had the original ones.

  Args:
    state: Entry -> array.
    base: Component -> its tree.

  Returns:
    The entries, each factor of a joint layer as one of each part.
  """
  if COMPONENT not in base:
    return dict(state)
  spelled = {}
  for name, original in originals(base[COMPONENT]).items():
    spelled[f"lora_unet_{name}".replace(".", "_")] = original
    spelled[f"diffusion_model.{name}"] = original
  result = {}
  for name, array in state.items():
    entry = lora_entries.parse(name)
    original = entry and spelled.get(lora_entries.unwrapped(entry.layer))
    if not original:
      result[name] = array
      continue
    suffix = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}[entry.role]
    parts = [array] * len(original.layers)
    if entry.role == "up" and array.ndim:
      if original.swapped:
        parts = [np.roll(array, array.shape[0] // 2, axis=0)]
      elif array.shape[0] % len(parts) == 0:
        parts = np.split(array, len(parts))
    for layer, part in zip(original.layers, parts, strict=True):
      result[f"{COMPONENT}.{layer}.{suffix}"] = part
  return result


def join(
  layers: Mapping[str, tuple[np.ndarray, np.ndarray]], params: trees.Tree
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
  """Factors by the original names; the inverse of `split` but for the ranks of joint layers.

  Args:
    layers: Layer -> (down [I, r], up [r, O]), whose product is the update.
    params: The transformer's tree.

  Returns:
    Dotted name -> (down, up) of the same meaning, and the layers that have no original name.
  """
  outputs = {
    name.removesuffix(".kernel"): leaf.shape[-1]
    for name, leaf in trees.flatten(params).items()
    if name.endswith(".kernel")
  }
  joined, used = {}, set()
  for name, original in originals(params).items():
    present = [layer for layer in original.layers if layer in layers]
    if not present:
      continue
    used |= set(present)
    downs, ups = zip(*(layers[layer] for layer in present), strict=True)
    shared = all(np.array_equal(down, downs[0]) for down in downs)
    down = downs[0] if shared else np.concatenate(downs, axis=-1)
    up = np.zeros((down.shape[-1], sum(outputs[layer] for layer in original.layers)), ups[0].dtype)
    row = column = 0
    for layer in original.layers:
      if layer in layers:
        part = layers[layer][1]
        up[row : row + part.shape[0], column : column + part.shape[1]] = part
        row += 0 if shared else part.shape[0]
      column += outputs[layer]
    joined[name] = down, np.roll(up, up.shape[1] // 2, axis=1) if original.swapped else up
  return joined, [layer for layer in layers if layer not in used]
