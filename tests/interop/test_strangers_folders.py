"""Folders that a stranger made: nothing outside of them is read or written, and nothing hangs."""

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from tests.interop import helpers
from tests.interop.helpers import TEXT_FILE, UNET_FILE, edit_json

INDEX = "model_index.json"


@pytest.fixture
def secret(tmp_path):
  """A folder and a file beside the pipeline that must not be read."""
  folder = tmp_path / "secret"
  folder.mkdir()
  (folder / "token").write_text("s3cret")
  return folder


# Names


@pytest.mark.parametrize(
  "name", ["../secret", "/etc", "a/b", ".", "..", "a\\b", "x\x1b]0;owned\x07", "unet\n", ""]
)
def test_a_component_whose_name_is_no_name_is_refused(broken, secret, name):
  edit_json(broken / INDEX, **{name: ["diffusers", "X"]})
  with pytest.raises(InputError, match="is no name; expected letters, digits and underscores") as e:
    interop.load_pipeline(broken)
  assert "\x1b" not in str(e.value)


@pytest.mark.parametrize("value", [["diffusers", 5], [None, "X"], [["a"], ["b"]], ["a", {}]])
def test_a_component_whose_class_is_no_text_is_refused(broken, value):
  edit_json(broken / INDEX, extra=value)
  with pytest.raises(InputError, match=r"component extra is .* the names of a library and a class"):
    interop.load_pipeline(broken)


@pytest.mark.parametrize("name", ["../outside", "a/b", "/x"])
def test_a_passthrough_name_outside_of_the_target_is_refused(pipeline, tmp_path, secret, name):
  import dataclasses

  changed = dataclasses.replace(pipeline, passthrough={name: secret})
  with pytest.raises(InputError, match="is no name in the pipeline's folder"):
    interop.save_pipeline(tmp_path / "a/saved", changed)


@pytest.mark.parametrize(
  "name", ["../secret/x.safetensors", "/x.safetensors", 5, None, "a" * 5000 + ".safetensors", "x"]
)
def test_a_shard_outside_of_its_folder_is_refused(broken, name):
  (broken / UNET_FILE).unlink()
  index = {"weight_map": {"conv_in.weight": name}}
  helpers.write_json(broken / "unet/diffusion_pytorch_model.safetensors.index.json", index)
  with pytest.raises(InputError, match=r"names the shard .* no name of a \.safetensors file"):
    interop.load_network(broken / "unet")


def test_a_subfolder_outside_of_the_source_is_refused(broken):
  with pytest.raises(InputError, match=r"subfolder is '../unet'"):
    interop.load_network(broken / "vae", subfolder="../unet")


# Links


def with_safety_checker(folder):
  edit_json(folder / INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])


@pytest.mark.parametrize("place", ["LICENSE", "safety_checker", "unet/notes.txt", "tokenizer/x"])
def test_a_link_that_leaves_the_folder_is_refused(broken, secret, place):
  with_safety_checker(broken)
  (broken / "safety_checker").mkdir()
  if place == "safety_checker":
    (broken / place).rmdir()
  (broken / place).symlink_to(secret if place == "safety_checker" else secret / "token")
  with pytest.raises(InputError, match="is a link that leaves the folder"):
    interop.load_pipeline(broken)


def test_a_link_made_after_loading_is_not_copied(broken, secret, tmp_path):
  with_safety_checker(broken)
  (broken / "safety_checker").mkdir()
  (broken / "LICENSE").write_text("open")
  loaded = interop.load_pipeline(broken)
  (broken / "safety_checker/token").symlink_to(secret / "token")
  with pytest.raises(InputError, match="is a link that leaves the folder"):
    interop.save_pipeline(tmp_path / "saved", loaded)
  assert not (tmp_path / "saved").exists()


def test_a_ring_of_folders_ends(broken):
  with_safety_checker(broken)
  (broken / "safety_checker").mkdir()
  (broken / "safety_checker/again").symlink_to(broken / "safety_checker")
  with pytest.raises(InputError, match="is a link to a folder; put a copy"):
    interop.load_pipeline(broken)


def test_a_link_inside_the_pipeline_is_followed(broken, pipeline):
  (broken / UNET_FILE).rename(broken / "weights.safetensors")
  (broken / UNET_FILE).symlink_to(broken / "weights.safetensors")
  loaded = interop.load_pipeline(broken)
  helpers.assert_same_trees(loaded.params["unet"], pipeline.params["unet"])


def test_a_link_to_nothing_is_named(broken):
  (broken / UNET_FILE).unlink()
  (broken / UNET_FILE).symlink_to("gone")
  with pytest.raises(InputError, match="is a link to nothing; download"):
    interop.load_pipeline(broken)


@pytest.mark.parametrize("place", [UNET_FILE, "unet/config.json", "tokenizer/vocab.json"])
def test_a_pipe_is_no_file_and_is_not_waited_for(broken, place):
  (broken / place).unlink(missing_ok=True)
  os.mkfifo(broken / place)
  with pytest.raises(InputError, match="is neither a file nor a folder; remove it"):
    interop.load_pipeline(broken)


# Variants


def rename_weights(folder, component, variant):
  (file,) = (folder / component).glob("*.safetensors")
  file.rename(file.with_suffix(f".{variant}.safetensors"))


def test_a_network_without_the_variant_is_read_without_one(sd_folder, tmp_path, caplog):
  folder = shutil.copytree(sd_folder, tmp_path / "mixed")
  other = {k: a + np.float32(1) for k, a in load_file(folder / UNET_FILE).items()}
  save_file(other, folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
  plain = interop.load_pipeline(folder)
  mixed = interop.load_pipeline(folder, variant="non_ema")
  assert "no weights of the variant 'non_ema' of text_encoder, vae; those without" in caplog.text
  helpers.assert_same_trees(mixed.params["vae"], plain.params["vae"])
  moved = mixed.params["unet"]["conv_in"]["bias"] - plain.params["unet"]["conv_in"]["bias"]
  np.testing.assert_allclose(moved, 1, rtol=1e-6)


def test_the_only_variant_is_read_without_being_named(sd_folder, tmp_path, caplog):
  folder = shutil.copytree(sd_folder, tmp_path / "half")
  rename_weights(folder, "unet", "fp16")
  rename_weights(folder, "text_encoder", "fp16")
  loaded = interop.load_pipeline(folder)
  helpers.assert_same_trees(loaded.params, interop.load_pipeline(sd_folder).params)
  assert "the only weights of text_encoder, unet are of the variant 'fp16'" in caplog.text


def test_a_variant_is_not_replaced_by_another_one(sd_folder, tmp_path):
  folder = shutil.copytree(sd_folder, tmp_path / "half")
  rename_weights(folder, "unet", "fp16")
  rename_weights(folder, "vae", "bf16")
  with pytest.raises(InputError, match=r"vae: no weights of the variant 'fp16'; .* has 'bf16'"):
    interop.load_pipeline(folder, variant="fp16")


def test_a_variant_that_is_pickled_alone_is_named(broken):
  (broken / "unet/diffusion_pytorch_model.fp16.bin").write_text("x")
  with pytest.raises(InputError, match=r"pickled ones, .*: unet/diffusion_pytorch_model\.fp16\.b"):
    interop.load_pipeline(broken, variant="fp16")


def test_a_single_network_has_the_variant_or_not(sd_folder):
  with pytest.raises(InputError, match="variant 'fp16'; the folder has those without a variant"):
    interop.load_network(sd_folder / "vae", variant="fp16")


# Tensors that no layer reads


@pytest.fixture
def surplus(broken):
  state = load_file(broken / UNET_FILE)
  state["ema.num_updates"] = np.zeros(3, np.float32)
  save_file(state, broken / UNET_FILE)
  return broken


def test_surplus_tensors_are_listed(surplus, pipeline, caplog):
  loaded = interop.load_pipeline(surplus)
  helpers.assert_same_trees(loaded.params, pipeline.params)
  assert "unet: 1 tensors that no layer reads: ema.num_updates" in caplog.text


def test_surplus_tensors_are_refused_on_request(surplus):
  with pytest.raises(InputError, match=r"1 entries .*\n  surplus: ema\.num_updates"):
    interop.load_pipeline(surplus, strict=True)


# Classes


def test_the_class_of_the_index_decides_where_the_config_names_none(broken, pipeline):
  config = helpers.read_json(broken / "text_encoder/config.json")
  del config["architectures"]
  helpers.write_json(broken / "text_encoder/config.json", config)
  loaded = interop.load_pipeline(broken)
  assert loaded.configs["text_encoder"]["architectures"] == ["CLIPTextModel"]


def test_the_class_of_the_index_decides_for_transformers(broken, pipeline):
  state = load_file(broken / TEXT_FILE)
  save_file({**state, "text_projection.weight": np.zeros((5, 12), np.float32)}, broken / TEXT_FILE)
  edit_json(broken / "text_encoder/config.json", architectures=["CLIPTextModelWithProjection"])
  loaded = interop.load_pipeline(broken)
  helpers.assert_same_trees(loaded.params, pipeline.params)


def test_a_config_of_another_network_than_the_index_names_is_refused(broken):
  edit_json(broken / INDEX, unet=["diffusers", "AutoencoderKL"])
  with pytest.raises(InputError, match=r"unet: config\.json describes a UNet2DConditionModel, and"):
    interop.load_pipeline(broken)


# Tokenizers


DAMAGED = {
  "an empty tokenizer": ("tokenizer.json", "{}"),
  "a cut config": ("tokenizer_config.json", '{"model_max_length": 8, "unk_token": "<|endo'),
  "a list as config": ("tokenizer_config.json", "[]"),
  "a list as padding": ("tokenizer_config.json", '{"model_max_length": 8, "pad_token": [null]}'),
  "a text as length": ("tokenizer_config.json", '{"model_max_length": "8"}'),
  "a list as length": ("tokenizer_config.json", '{"model_max_length": [8]}'),
  "a number as end": ("tokenizer_config.json", '{"model_max_length": 8, "eos_token": 5}'),
  "a fraction as length": ("tokenizer_config.json", '{"model_max_length": 8.5}'),
  "a list as vocabulary": ("tokenizer.json", '{"model": {"type": "BPE", "vocab": [5, []]}}'),
  "deep nesting": ("special_tokens_map.json", "[" * 3000 + "]" * 3000),
  "no JSON": ("added_tokens.json", "\x00"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_tokenizer_gives_one_line_with_its_place(broken, case):
  file, text = DAMAGED[case]
  (broken / "tokenizer" / file).write_text(text)
  with pytest.raises(InputError, match="tokenizer") as error:
    interop.load_pipeline(broken)
  assert "\n" not in str(error.value)


def test_the_config_of_a_tokenizer_reads_no_other_files(broken, secret, tokenizer):
  other = interop.build_tokenizer(["another", "vocabulary"], 8)
  other.save_pretrained(secret)
  edit_json(
    broken / "tokenizer/tokenizer_config.json", tokenizer_file=str(secret / "tokenizer.json")
  )
  loaded = interop.load_pipeline(broken).tokenizers["tokenizer"]
  assert loaded.get_vocab() == tokenizer.get_vocab()


def test_no_code_of_a_tokenizer_is_run(broken, tokenizer):
  (broken / "tokenizer/tok.py").write_text("raise SystemExit('ran')")
  edit_json(
    broken / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.T", "tok.T"]}
  )
  loaded = interop.load_pipeline(broken).tokenizers["tokenizer"]
  assert loaded.get_vocab() == tokenizer.get_vocab()
