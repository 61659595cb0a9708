"""LoRAs of SD3 in kohya's format, against diffusers' converter of whole checkpoints."""

import jax
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import lora_mmdit
from dmpo_jax.models import lora, trees
from tests.interop.lora_case import filled
from tests.interop.test_lora_files import fused

CONFIG = {
  "_class_name": "SD3Transformer2DModel",
  "sample_size": 16,
  "patch_size": 2,
  "in_channels": 16,
  "num_layers": 3,
  "attention_head_dim": 8,
  "num_attention_heads": 2,
  "joint_attention_dim": 24,
  "caption_projection_dim": 16,
  "pooled_projection_dim": 24,
  "out_channels": 16,
  "pos_embed_max_size": 16,
  "dual_attention_layers": [0, 1],
  "qk_norm": "rms_norm",
}


@pytest.fixture(scope="module")
def base():
  zeros = lambda leaf: np.zeros(leaf.shape, np.float32)  # noqa: E731
  return {"transformer": jax.tree.map(zeros, models.abstract(CONFIG))}


def make(base, targets="*", rank=2):
  tree = lora.init(jax.random.key(0), base["transformer"], targets=targets, rank=rank)
  return interop.Lora({"transformer": filled(tree, 1)}, {"transformer": 3.0})


def update(base, adapter):
  """Torch's state dict of the update, on a base of zeros."""
  merged = lora.merge(
    base["transformer"], adapter.params["transformer"], alpha=adapter.alphas["transformer"]
  )
  return interop.to_torch_state(merged)


def converted(file, base):
  """The update of a file in kohya's format, by diffusers' converter of whole checkpoints."""
  state = load_file(file)
  whole = {"pos_embed": torch.zeros(1, 256, 16)}
  for name, original in lora_mmdit.originals(base["transformer"]).items():
    leaves = trees.flatten(base["transformer"])
    outputs = sum(leaves[f"{layer}.bias"].shape[0] for layer in original.layers)
    *window, inputs, _ = leaves[f"{original.layers[0]}.kernel"].shape
    weight = np.zeros((outputs, inputs, *window), np.float32)
    key = f"lora_unet_{name}".replace(".", "_")
    if f"{key}.alpha" in state:
      down, up = (state[f"{key}.lora_{side}.weight"] for side in ("down", "up"))
      scale = state[f"{key}.alpha"] / down.shape[0]
      weight = scale * np.einsum("or,ri...->oi...", up.reshape(outputs, -1), down)
    whole[f"{name}.weight"] = torch.from_numpy(weight)
    whole[f"{name}.bias"] = torch.zeros(outputs)
    if name.endswith(".qkv"):
      for norm in ("ln_q", "ln_k"):
        whole[f"{name.removesuffix('qkv')}{norm}.weight"] = torch.zeros(8)
  return convert_sd3_transformer_checkpoint_to_diffusers(whole)


@pytest.mark.parametrize("targets", ["*", ("*.to_q", "*.add_v_proj", "*.attn2.to_out.0")])
def test_a_file_of_kohya_s_format_has_the_update_of_every_layer(base, targets, tmp_path):
  adapter = make(base, targets)
  interop.save_kohya_lora(tmp_path / "a.safetensors", adapter, base)
  actual = converted(tmp_path / "a.safetensors", base)
  for name, array in update(base, adapter).items():
    np.testing.assert_allclose(actual[name].numpy(), array, atol=1e-6, err_msg=name)


def test_a_file_of_kohya_s_format_read_back_is_the_same_update(base, tmp_path):
  adapter = make(base)
  interop.save_kohya_lora(tmp_path / "a.safetensors", adapter, base)
  again = interop.load_lora(tmp_path / "a.safetensors", base)
  expected = update(base, adapter)
  for name, array in update(base, again).items():
    np.testing.assert_allclose(array, expected[name], atol=1e-6, err_msg=name)


def test_a_joint_layer_read_and_written_again_keeps_its_rank(base, tmp_path):
  interop.save_kohya_lora(tmp_path / "a.safetensors", make(base, "*.to_[qkv]"), base)
  again = interop.load_lora(tmp_path / "a.safetensors", base)
  interop.save_kohya_lora(tmp_path / "b.safetensors", again, base)
  a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
  assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}


def test_diffusers_applies_the_update_of_our_file(base, tmp_path):
  network = SD3Transformer2DModel(**{k: v for k, v in CONFIG.items() if k != "_class_name"})
  before = {name: array.clone() for name, array in network.state_dict().items()}
  adapter = make(base, ("*attn*", "*.ff*", "norm_out.linear", "proj_out", "pos_embed.proj"))
  interop.save_lora(tmp_path / "a.safetensors", adapter, base)
  network.load_lora_adapter(str(tmp_path / "a.safetensors"), prefix="transformer")
  after = fused(network)
  for name, array in update(base, adapter).items():
    change = after[name] - before[name].numpy()
    np.testing.assert_allclose(change, array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", ""])
def test_peft_s_names_are_read(base, prefix, tmp_path):
  adapter = make(base)
  interop.save_lora(tmp_path / "a.safetensors", adapter, base)
  state = load_file(tmp_path / "a.safetensors")
  renamed = {prefix + name.removeprefix("transformer."): array for name, array in state.items()}
  save_file(renamed, tmp_path / "b.safetensors")
  expected = update(base, adapter)
  for name, array in update(base, interop.load_lora(tmp_path / "b.safetensors", base)).items():
    np.testing.assert_allclose(array, expected[name], atol=1e-6, err_msg=name)


def test_onetrainer_s_names_are_read(base, tmp_path):
  adapter = make(base, "*.to_q")
  interop.save_lora(tmp_path / "a.safetensors", adapter, base)
  state = {}
  for name, array in load_file(tmp_path / "a.safetensors").items():
    layer, side = name.removesuffix(".weight").rsplit(".", 1)
    spelled = f"lora_{layer}".replace(".", "_")
    state[f"{spelled}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = array
  save_file(state, tmp_path / "b.safetensors")
  assert interop.load_lora(tmp_path / "b.safetensors", base).alphas["transformer"]


def test_a_joint_layer_of_another_width_is_refused(base, tmp_path):
  interop.save_kohya_lora(tmp_path / "a.safetensors", make(base, "*.to_q"), base)
  state = load_file(tmp_path / "a.safetensors")
  name = "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight"
  state[name] = state[name][:-1]
  save_file(state, tmp_path / "a.safetensors")
  with pytest.raises(InputError, match=r"attn\.to_q: made for \[16, 47\]"):
    interop.load_lora(tmp_path / "a.safetensors", base)
