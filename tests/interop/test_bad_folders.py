"""Folders and weights that cannot be read, and their error messages."""

import os
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from tests.interop import helpers, tiny
from tests.interop.helpers import TEXT_FILE, UNET_FILE, edit_json

# Folders that are no pipeline


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"is no pipeline folder: it has no model_index\.json"):
    interop.load_pipeline(tmp_path)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae", "scheduler", "tokenizer"])
def test_a_missing_component_is_named(sd_folder, tmp_path, component):
  folder = shutil.copytree(sd_folder, tmp_path / "broken")
  shutil.rmtree(folder / component)
  with pytest.raises(InputError, match=f"has no {component}/"):
    interop.load_pipeline(folder)


def test_an_index_without_a_text_encoder_is_refused(broken):
  edit_json(broken / "model_index.json", text_encoder=[None, None])
  with pytest.raises(InputError, match="names no 'text_encoder'"):
    interop.load_pipeline(broken, required=("unet", "text_encoder"))


def test_a_network_that_the_pipeline_does_not_have_is_refused(pixels_folder):
  with pytest.raises(InputError, match=r"unknown network in components 'vae' \(known: text_enc"):
    interop.load_pipeline(pixels_folder, components=["vae"])


def test_a_single_name_for_components_is_refused(pixels_folder):
  with pytest.raises(InputError, match="components is the single string 'unet'"):
    interop.load_pipeline(pixels_folder, components="unet")


def test_a_pipeline_without_a_tokenizer_has_none(broken):
  edit_json(broken / "model_index.json", tokenizer=[None, None])
  assert interop.load_pipeline(broken).tokenizers == {}


def test_a_tokenizer_of_another_kind_is_refused(broken):
  edit_json(broken / "model_index.json", tokenizer=["transformers", "LlamaTokenizer"])
  with pytest.raises(
    InputError, match="tokenizer is a LlamaTokenizer; expected one of CLIPTokenizer"
  ):
    interop.load_pipeline(broken)


def test_an_empty_tokenizer_folder_is_refused(broken):
  for file in (broken / "tokenizer").iterdir():
    file.unlink()
  with pytest.raises(InputError, match="holds no tokenizer"):
    interop.load_pipeline(broken)


def test_a_damaged_tokenizer_is_refused(broken):
  (broken / "tokenizer/tokenizer.json").write_text('{"version": ')
  with pytest.raises(InputError, match=r"tokenizer\.json is no valid JSON"):
    interop.load_pipeline(broken)


def test_a_missing_config_is_named(broken):
  (broken / "unet/config.json").unlink()
  with pytest.raises(InputError, match=r"unet/config\.json is missing"):
    interop.load_pipeline(broken)


def test_a_config_that_is_no_json_is_named(broken):
  (broken / "unet/config.json").write_text('{"in_channels": 1,')
  with pytest.raises(InputError, match=r"unet/config\.json is no valid JSON"):
    interop.load_pipeline(broken)


def test_a_config_of_an_unknown_class_is_named(broken):
  edit_json(broken / "unet/config.json", _class_name="UNet9DModel")
  with pytest.raises(InputError, match=r"unet.*UNet9DModel"):
    interop.load_pipeline(broken)


def test_a_network_of_an_unknown_class_passes_through_if_it_is_not_loaded(sd_folder, tmp_path):
  folder = shutil.copytree(sd_folder, tmp_path / "other")
  edit_json(folder / "vae/config.json", _class_name="AutoencoderTiny")
  loaded = interop.load_pipeline(folder, components=["unet", "text_encoder"])
  assert loaded.passthrough == {"vae": folder / "vae"}


# Weights that cannot be used


def test_weights_of_another_size_than_the_config_are_refused(broken):
  edit_json(broken / "unet/config.json", in_channels=2)
  with pytest.raises(InputError, match=r"unet: 1 entries.*\n.*conv_in.weight is \[8, 1, 3, 3\]"):
    interop.load_pipeline(broken)


def test_all_missing_surplus_and_misshapen_weights_are_listed(broken):
  state = load_file(broken / UNET_FILE)
  state["conv_in.wait"] = state.pop("conv_in.weight")
  state["time_embedding.linear_1.bias"] = np.zeros(7, np.float32)
  state["conv_norm_out.bias"] = np.zeros(8, np.int8)
  del state["conv_out.bias"]
  save_file(state, broken / UNET_FILE)
  with pytest.raises(InputError) as error:
    interop.load_pipeline(broken)
  assert sorted(str(error.value).splitlines()[1:]) == [
    "  misshapen: time_embedding.linear_1.bias is [7], expected [32]",
    "  missing: conv_in.weight",
    "  missing: conv_out.bias",
    "  surplus: conv_in.wait",
    "  wrong dtype: conv_norm_out.bias is I8, expected float32 or float16 or bfloat16",
  ]


def test_text_weights_under_both_names_are_refused(broken):
  state = load_file(broken / TEXT_FILE)
  state["text_model.final_layer_norm.bias"] = state["final_layer_norm.bias"]
  save_file(state, broken / TEXT_FILE)
  with pytest.raises(InputError, match=r"text_model\.final_layer_norm\.bias occurs twice, also"):
    interop.load_pipeline(broken)


def test_a_truncated_file_is_named(broken):
  os.truncate(broken / UNET_FILE, (broken / UNET_FILE).stat().st_size // 2)
  with pytest.raises(InputError, match=r"diffusion_pytorch_model\.safetensors is a damaged safet"):
    interop.load_pipeline(broken)


def test_an_empty_file_is_named(broken):
  os.truncate(broken / UNET_FILE, 0)
  with pytest.raises(InputError, match=r"damaged safetensors file.*cut short"):
    interop.load_pipeline(broken)


@pytest.fixture
def shards(broken):
  """The UNet's folder, with weights in several files."""
  (broken / UNET_FILE).unlink()
  tiny.make_unet(**tiny.PIXELS).save_pretrained(broken / "unet", max_shard_size="20KB")
  return broken / "unet"


def test_a_missing_shard_is_named(shards):
  lost = sorted(shards.glob("*.safetensors"))[-1]
  lost.unlink()
  with pytest.raises(InputError, match=f"shards that are missing: {re.escape(lost.name)}"):
    interop.load_network(shards)


def test_a_truncated_shard_is_named(shards):
  cut = sorted(shards.glob("*.safetensors"))[-1]
  os.truncate(cut, cut.stat().st_size - 1)
  with pytest.raises(InputError, match=f"{re.escape(cut.name)} is a damaged safetensors"):
    interop.load_network(shards)


def test_a_shard_index_without_a_weight_map_is_refused(shards):
  (shards / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
  with pytest.raises(InputError, match="names no shards"):
    interop.load_network(shards)


def change_index(shards, change):
  index = shards / "diffusion_pytorch_model.safetensors.index.json"
  weight_map = helpers.read_json(index)["weight_map"]
  change(weight_map)
  edit_json(index, weight_map=weight_map)
  return weight_map


def test_a_tensor_that_the_index_does_not_list_is_named(shards):
  change_index(shards, lambda weight_map: weight_map.pop("conv_out.bias"))
  with pytest.raises(InputError, match=r"has conv_out\.bias, which is not listed"):
    interop.load_network(shards)


def test_a_tensor_in_another_shard_than_listed_is_named(shards):
  change_index(shards, lambda weight_map: weight_map.update(new=next(iter(weight_map.values()))))
  with pytest.raises(InputError, match=r"\n  new is not in diffusion_pytorch_model-0"):
    interop.load_network(shards)


def test_the_error_of_a_missing_variant_lists_the_existing_ones(broken):
  unet = broken / "unet"
  shutil.copy(broken / UNET_FILE, unet / "diffusion_pytorch_model.fp16.safetensors")
  shutil.copy(broken / UNET_FILE, unet / "diffusion_pytorch_model.non_ema.safetensors")
  with pytest.raises(
    InputError,
    match="variant 'bf16'; the pipeline has those without a variant, 'fp16', 'non_ema'",
  ):
    interop.load_pipeline(broken, variant="bf16", components=["unet"])


def test_the_error_of_missing_weights_lists_the_variants(broken):
  unet = broken / "unet"
  shutil.copy(broken / UNET_FILE, unet / "diffusion_pytorch_model.fp16.safetensors")
  (broken / UNET_FILE).rename(unet / "diffusion_pytorch_model.ema.safetensors")
  with pytest.raises(InputError, match="without a variant; the folder has 'ema', 'fp16'; name one"):
    interop.load_pipeline(broken)


def test_the_error_of_a_component_without_weights_lists_its_files(broken):
  (broken / UNET_FILE).rename(broken / "unet/weights.safetensors")
  with pytest.raises(InputError, match=r"has config\.json, weights\.safetensors"):
    interop.load_pipeline(broken)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_the_conversion_command_for_a_pickled_checkpoint_works(broken, pipeline, component):
  folder = broken / component
  (weights,) = folder.glob("*.safetensors")
  state = {name: torch.from_numpy(array) for name, array in load_file(weights).items()}
  pickled = {"unet": "diffusion_pytorch_model.bin", "text_encoder": "pytorch_model.bin"}[component]
  torch.save(state, folder / pickled)
  weights.unlink()
  with pytest.raises(InputError, match=f"pickled \\({pickled}\\)") as error:
    interop.load_pipeline(broken)
  command = shlex.split(str(error.value).rpartition("\n")[2])
  assert command[:2] == ["python", "-c"]
  exec(command[2], {})
  loaded = interop.load_pipeline(broken)
  helpers.assert_same_trees(loaded.params[component], pipeline.params[component])


def test_the_conversion_command_holds_no_words_that_a_shell_evaluates(broken):
  folder = broken.rename(broken.with_name("a$(touch x) 'b"))
  (folder / UNET_FILE).rename(folder / "unet/diffusion_pytorch_model.bin")
  with pytest.raises(InputError, match="pickled") as error:
    interop.load_pipeline(folder)
  code = shlex.split(str(error.value).rpartition("\n")[2])[2]
  assert code.count(f'"{folder / "unet"}"') == 2


def test_a_class_that_is_no_name_is_in_no_command(broken):
  (broken / TEXT_FILE).rename(broken / "text_encoder/pytorch_model.bin")
  edit_json(
    broken / "text_encoder/config.json", architectures=["X as M; import os; M", "CLIPTextModel"]
  )
  with pytest.raises(InputError, match="pickled") as error:
    interop.load_network(broken / "text_encoder")
  assert "python -c" not in str(error.value)
