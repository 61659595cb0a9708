"""Writing pipelines: layouts, passthrough files, and that they appear whole or not at all."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from diffusers import StableDiffusionPipeline
from safetensors.numpy import load_file

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import write_weights
from tests.common.full_disk import full_disk
from tests.interop import helpers, tiny
from tests.interop.helpers import TEXT_FILE, UNET_FILE, edit_json, snapshot


@pytest.fixture(scope="module")
def other(pipeline):
  """The same pipeline with other numbers."""
  params = jax.tree.map(lambda leaf: leaf + np.float32(1), pipeline.params)
  return dataclasses.replace(pipeline, params=params)


def with_unet_bias(pipeline, bias):
  unet = pipeline.params["unet"]
  unet = {**unet, "conv_in": {**unet["conv_in"], "bias": bias}}
  return dataclasses.replace(pipeline, params={**pipeline.params, "unet": unet})


# Files


@pytest.mark.parametrize("file", [UNET_FILE, TEXT_FILE])
def test_weights_say_that_they_are_laid_out_for_torch(saved, file):
  with safetensors.safe_open(saved / file, framework="numpy") as opened:
    assert opened.metadata() == {"format": "pt"}


def test_files_are_as_readable_as_others(saved):
  assert (saved / UNET_FILE).stat().st_mode == (saved / "unet/config.json").stat().st_mode


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_are_written_in_their_own_dtype(pipeline, tmp_path, dtype):
  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), pipeline.params)
  interop.save_pipeline(tmp_path / "half", dataclasses.replace(pipeline, params=half))
  assert {a.dtype.name for a in load_file(tmp_path / "half" / UNET_FILE).values()} == {dtype}


def test_parameters_are_cast_when_they_are_written(pipeline, tmp_path):
  interop.save_pipeline(tmp_path / "half", pipeline, dtype=jnp.bfloat16)
  loaded = interop.load_pipeline(tmp_path / "half", dtype=None)
  helpers.assert_same_trees(
    loaded.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pipeline.params)
  )


def test_parameters_that_are_sharded_over_devices_are_written_in_full(pipeline, saved, tmp_path):
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.P("x"))
  sharded = with_unet_bias(
    pipeline, jax.device_put(pipeline.params["unet"]["conv_in"]["bias"], split)
  )
  interop.save_pipeline(tmp_path / "saved", sharded)
  assert (tmp_path / "saved" / UNET_FILE).read_bytes() == (saved / UNET_FILE).read_bytes()


def with_one_large(pipeline, number):
  bias = pipeline.params["unet"]["conv_in"]["bias"].copy()
  bias[2] = number
  return with_unet_bias(pipeline, bias)


def test_numbers_that_float16_cannot_hold_are_not_written(pipeline, tmp_path):
  with pytest.raises(
    InputError, match=r"unet parameters: conv_in\.bias has the value 1e\+30, which is inf"
  ):
    interop.save_pipeline(tmp_path / "saved", with_one_large(pipeline, -1e30), dtype="float16")
  assert list(tmp_path.iterdir()) == []


def test_a_number_that_rounds_to_the_largest_float16_is_written(pipeline, tmp_path):
  interop.save_pipeline(tmp_path / "saved", with_one_large(pipeline, 65510), dtype="float16")
  assert load_file(tmp_path / "saved" / UNET_FILE)["conv_in.bias"][2] == 65504


def test_saving_takes_the_memory_of_a_few_parameters(tmp_path):
  config = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "vocab_size": 100,
  }
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), models.abstract(config))
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  tracemalloc.start()
  try:
    write_weights.write_network(
      tmp_path, config, params, variant=None, dtype="float16", max_shard_size=10**9
    )
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 4 * largest < 4 * models.trees.count(params) / 10


@pytest.mark.parametrize("size", [20_000, "20KB", "0.02 mb"])
def test_no_shard_is_larger_than_asked(pipeline, tmp_path, size):
  interop.save_pipeline(tmp_path / "saved", pipeline, max_shard_size=size)
  shards = list((tmp_path / "saved/unet").glob("*.safetensors"))
  assert len(shards) > 1
  for shard in shards:
    state = load_file(shard)
    assert len(state) == 1 or sum(array.nbytes for array in state.values()) <= 20_000


def test_the_index_states_the_total_size(pipeline, tmp_path):
  interop.save_pipeline(tmp_path / "saved", pipeline, max_shard_size="20KB")
  index = helpers.read_json(tmp_path / "saved/unet/diffusion_pytorch_model.safetensors.index.json")
  assert index["metadata"]["total_size"] == 4 * models.trees.count(pipeline.params["unet"])


@pytest.mark.parametrize("size", ["5", "5 gigabytes", 0, -1, True, "0KB", 1.5])
def test_a_shard_size_that_is_none_is_refused(pipeline, tmp_path, size):
  with pytest.raises(InputError, match="max_shard_size is"):
    interop.save_pipeline(tmp_path / "saved", pipeline, max_shard_size=size)


@pytest.mark.parametrize("variant", ["", "a/b", "fp16.new"])
def test_a_variant_that_is_no_part_of_a_file_name_is_refused(pipeline, tmp_path, variant):
  with pytest.raises(InputError, match="expected letters, digits"):
    interop.save_pipeline(tmp_path / "saved", pipeline, variant=variant)


def test_a_dtype_that_does_not_exist_is_refused(pipeline, tmp_path):
  with pytest.raises(InputError, match="dtype is 'half16'"):
    interop.save_pipeline(tmp_path / "saved", pipeline, dtype="half16")


def test_a_saved_tokenizer_does_not_pad_by_itself(pipeline, tmp_path):
  interop.tokenize(pipeline.tokenizers["tokenizer"], ["one"])
  interop.save_pipeline(tmp_path / "padded", pipeline)
  assert json.loads((tmp_path / "padded/tokenizer/tokenizer.json").read_text())["padding"] is None


# Passthrough files


@pytest.fixture
def published(sd_folder, tmp_path):
  """A pipeline with what repositories hold beside it."""
  folder = shutil.copytree(sd_folder, tmp_path / "published")
  (folder / "feature_extractor").mkdir()
  (folder / "feature_extractor/preprocessor_config.json").write_text('{"size": 224}')
  edit_json(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
  (folder / "LICENSE.md").write_text("use it well")
  (folder / "README.md").write_text("the model that this is")
  (folder / "v1-5-pruned.ckpt").write_bytes(b"much")
  return folder


def test_components_that_are_not_read_are_copied(published, tmp_path):
  interop.save_pipeline(tmp_path / "saved", interop.load_pipeline(published))
  file = "feature_extractor/preprocessor_config.json"
  assert (tmp_path / "saved" / file).read_bytes() == (published / file).read_bytes()


def test_of_loose_files_the_license_alone_is_copied(published, tmp_path):
  interop.save_pipeline(tmp_path / "saved", interop.load_pipeline(published))
  files = {file.name for file in (tmp_path / "saved").iterdir() if file.is_file()}
  assert files == {"model_index.json", "LICENSE.md"}


def test_networks_that_were_not_loaded_are_copied(sd_folder, tmp_path):
  part = interop.load_pipeline(sd_folder, components=["unet"])
  interop.save_pipeline(tmp_path / "saved", part)
  theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
  helpers.assert_same_state(theirs.vae, tiny.make_vae())


def test_a_network_without_weights_is_not_copied(sd_folder, tmp_path):
  folder = shutil.copytree(sd_folder, tmp_path / "part")
  (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
  part = interop.load_pipeline(folder, components=["unet"])
  with pytest.raises(InputError, match=r"vae was not loaded, and .* holds no weights"):
    interop.save_pipeline(tmp_path / "saved", part)


def test_missing_passthrough_components_are_named(published, tmp_path):
  loaded = interop.load_pipeline(published)
  shutil.rmtree(published / "feature_extractor")
  with pytest.raises(InputError, match=r"feature_extractor is to be copied from .* gone"):
    interop.save_pipeline(tmp_path / "saved", loaded)
  assert not (tmp_path / "saved").exists()


def test_a_pipeline_can_be_saved_over_the_folder_that_it_carries_from(published):
  interop.save_pipeline(published, interop.load_pipeline(published))
  assert (published / "LICENSE.md").read_text() == "use it well"


# Whole or not at all

# Kills of writers at random moments; docs/fault_tolerance.md has the figures of a long run.
KILLS = os.environ.get("DMPO_JAX_KILLS", "4")


def test_a_killed_writer_leaves_a_whole_pipeline_and_the_next_one_removes_its_folder(
  pixels_folder, tmp_path
):
  command = [sys.executable, "-m", "tests.interop.export_kills", str(pixels_folder), str(tmp_path)]
  root = pathlib.Path(__file__).parents[2]
  result = subprocess.run([*command, KILLS], capture_output=True, text=True, cwd=root)
  assert result.returncode == 0, result.stderr
  print(result.stdout)


@pytest.fixture(scope="module")
def unwritable(pipeline):
  """A pipeline whose second network has a leaf that cannot be written; the first one can."""
  params = pipeline.params["text_encoder"]["text_model"]
  norm = params["final_layer_norm"] | {"bias": np.zeros(12, np.float64)}
  text = {"text_model": params | {"final_layer_norm": norm}}
  return dataclasses.replace(pipeline, params=pipeline.params | {"text_encoder": text})


def test_an_interrupted_save_leaves_nothing_behind(unwritable, tmp_path):
  with pytest.raises(
    InputError, match=r"text_encoder parameters: .*\n.*final_layer_norm.bias is f"
  ):
    interop.save_pipeline(tmp_path / "saved", unwritable)
  assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_old_pipeline_as_it_was(unwritable, broken):
  before = snapshot(broken)
  with pytest.raises(InputError):
    interop.save_pipeline(broken, unwritable)
  assert snapshot(broken) == before


def test_a_pipeline_is_replaced_as_a_whole(broken, other):
  (broken / "unet/left_over.txt").write_text("old")
  interop.save_pipeline(broken, other)
  assert not (broken / "unet/left_over.txt").exists()
  helpers.assert_same_trees(interop.load_pipeline(broken).params, other.params)


def test_replacing_a_pipeline_leaves_no_other_folder(broken, other):
  interop.save_pipeline(broken, other)
  assert list(broken.parent.iterdir()) == [broken]


def test_an_empty_folder_is_filled(tmp_path, pipeline):
  (tmp_path / "empty").mkdir()
  interop.save_pipeline(tmp_path / "empty", pipeline)
  assert interop.load_pipeline(tmp_path / "empty").model_index == pipeline.model_index


def test_a_folder_that_is_no_pipeline_is_not_overwritten(tmp_path, pipeline):
  (tmp_path / "thesis.txt").write_text("all of it")
  with pytest.raises(InputError, match="exists and is no pipeline folder"):
    interop.save_pipeline(tmp_path, pipeline)
  assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_a_target_below_a_file_is_refused(tmp_path, pipeline):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write to"):
    interop.save_pipeline(tmp_path / "file/below", pipeline)


@pytest.mark.parametrize("limit", [300, 8_000, 30_000])  # in a config, the tokenizer, the weights
def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path, pipeline, limit):
  match = r"cannot write \(.*\); free space, .*saved'$"
  with full_disk(limit), pytest.raises(OSError, match=match):
    interop.save_pipeline(tmp_path / "saved", pipeline)
  assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_size_than_the_config_are_not_written(tmp_path, pipeline):
  configs = dict(pipeline.configs)
  configs["unet"] = configs["unet"] | {"in_channels": 2}
  wrong = dataclasses.replace(pipeline, configs=configs)
  with pytest.raises(
    InputError, match=r"conv_in.weight is \[8, 1, 3, 3\], expected \[8, 2, 3, 3\]"
  ):
    interop.save_pipeline(tmp_path / "saved", wrong)


def test_parameters_without_a_config_are_not_written(tmp_path, pipeline):
  configs = {name: pipeline.configs[name] for name in ("text_encoder", "scheduler")}
  with pytest.raises(InputError, match="no config for 'unet'"):
    interop.save_pipeline(tmp_path / "saved", dataclasses.replace(pipeline, configs=configs))
