"""Reading pipelines: parameters, dtypes and shardings."""

import re
import shutil
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import tensor_file, write_weights
from dmpo_jax.models import trees
from tests.interop import helpers, tiny
from tests.interop.helpers import TEXT_FILE, UNET_FILE

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


def shard_over_four(tree):
  """Splits each array along its longest axis, where four divides that."""
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def one(leaf):
    axis = int(np.argmax(leaf.shape))
    spec = [None] * len(leaf.shape)
    spec[axis] = "x" if leaf.shape[axis] % 4 == 0 else None
    return jax.sharding.NamedSharding(mesh, jax.P(*spec))

  return jax.tree.map(one, tree)


# Components and names


def test_every_network_of_a_pipeline_is_read(sdxl):
  assert set(sdxl.params) == {"unet", "vae", "text_encoder", "text_encoder_2"}


def test_the_tokenizer_of_a_torch_folder_is_the_same(pipeline, tokenizer):
  captions = ["the digit seven", "a cat"]
  ours = interop.tokenize(pipeline.tokenizers["tokenizer"], captions).ids
  np.testing.assert_array_equal(ours, interop.tokenize(tokenizer, captions).ids)


def test_a_tokenizer_of_vocabulary_and_merges_is_read(saved, tmp_path, tokenizer):
  folder = shutil.copytree(saved, tmp_path / "old")
  (folder / "tokenizer/tokenizer.json").unlink()
  loaded = interop.load_pipeline(folder).tokenizers["tokenizer"]
  captions = ["the digit seven", "a cat"]
  np.testing.assert_array_equal(
    interop.tokenize(loaded, captions).ids, interop.tokenize(tokenizer, captions).ids
  )


def test_published_names_of_the_text_encoder_are_read_as_well(broken, pipeline):
  published = {f"text_model.{name}": a for name, a in load_file(broken / TEXT_FILE).items()}
  published["text_model.embeddings.position_ids"] = np.arange(tiny.CONTEXT)[None]
  save_file(published, broken / TEXT_FILE)
  loaded = interop.load_pipeline(broken)
  helpers.assert_same_trees(loaded.params["text_encoder"], pipeline.params["text_encoder"])


def test_old_names_of_attention_in_an_autoencoder_are_read_as_well(sd_folder, tmp_path):
  folder = shutil.copytree(sd_folder, tmp_path / "old")
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  state = {}
  for name, array in load_file(folder / VAE_FILE).items():
    for new, before in old.items():
      name = name.replace(f".{new}.", f".{before}.")
    state[name] = array
  assert "encoder.mid_block.attentions.0.proj_attn.bias" in state
  save_file(state, folder / VAE_FILE)
  loaded = interop.load_pipeline(folder, components=["vae"])
  helpers.assert_same_trees(loaded.params["vae"], interop.load_pipeline(sd_folder).params["vae"])


def test_only_the_named_networks_are_read(sdxl_folder, sdxl):
  loaded = interop.load_pipeline(sdxl_folder, components=["vae", "text_encoder"])
  expected = {name: sdxl.params[name] for name in ("vae", "text_encoder")}
  helpers.assert_same_trees(loaded.params, expected)


def test_configs_are_read_of_networks_that_are_not_loaded(sdxl_folder, sdxl):
  assert interop.load_pipeline(sdxl_folder, components=[]).configs == sdxl.configs


def test_an_older_index_of_a_variant_is_read(broken, pipeline):
  unet = broken / "unet"
  (broken / UNET_FILE).unlink()
  tiny.make_unet(**tiny.PIXELS).save_pretrained(unet, max_shard_size="20KB")
  index = unet / "diffusion_pytorch_model.safetensors.index.json"
  index.write_text(re.sub(r"(-of-\d{5})\.", r"\1.fp16.", index.read_text()))
  index.rename(unet / "diffusion_pytorch_model.safetensors.fp16.index.json")
  for file in unet.glob("*-of-*"):
    file.rename(file.with_suffix(".fp16.safetensors"))
  _, params = interop.load_network(unet, variant="fp16")
  helpers.assert_same_trees(params, pipeline.params["unet"])


# Dtypes and shardings


def test_loaded_parameters_are_float32(pipeline):
  assert {leaf.dtype for leaf in jax.tree.leaves(pipeline.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32(broken, pipeline, dtype):
  half = {name: array.astype(dtype) for name, array in load_file(broken / UNET_FILE).items()}
  save_file(half, broken / UNET_FILE)
  kernel = interop.load_pipeline(broken).params["unet"]["conv_in"]["kernel"]
  expected = pipeline.params["unet"]["conv_in"]["kernel"].astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(kernel, expected, strict=True)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_parameters_are_cast_when_they_are_read(pixels_folder, pipeline, dtype):
  loaded = interop.load_pipeline(pixels_folder, dtype=dtype)
  helpers.assert_same_trees(
    loaded.params, jax.tree.map(lambda leaf: leaf.astype(dtype), pipeline.params)
  )


def test_parameters_keep_their_stored_dtype_for_dtype_none(broken):
  state = load_file(broken / UNET_FILE)
  state["conv_in.bias"] = state["conv_in.bias"].astype(np.float16)
  save_file(state, broken / UNET_FILE)
  layer = interop.load_pipeline(broken, dtype=None).params["unet"]["conv_in"]
  assert (layer["bias"].dtype, layer["kernel"].dtype) == (np.float16, np.float32)


@pytest.mark.parametrize("dtype", ["float33", "float64", "int32", object()])
def test_a_dtype_that_is_not_for_parameters_is_refused(pixels_folder, dtype):
  with pytest.raises(InputError, match="expected float32, float16, bfloat16, or None"):
    interop.load_pipeline(pixels_folder, dtype=dtype)


def test_a_number_too_large_for_the_dtype_is_refused(broken):
  state = load_file(broken / UNET_FILE)
  state["conv_in.bias"][3] = -7e4
  save_file(state, broken / UNET_FILE)
  with pytest.raises(
    InputError, match=r"unet: conv_in\.bias has the value 70000, which is infinite"
  ):
    interop.load_pipeline(broken, dtype="float16")


def test_sharded_parameters_are_the_same(sdxl_folder, sdxl):
  loaded = interop.load_pipeline(sdxl_folder, shardings=lambda name, tree: shard_over_four(tree))
  helpers.assert_same_trees(jax.tree.map(np.asarray, loaded.params), sdxl.params)


def test_sharded_parameters_have_the_requested_shardings(sdxl_folder, sdxl):
  asked = {name: shard_over_four(tree) for name, tree in sdxl.params.items()}
  loaded = interop.load_pipeline(sdxl_folder, shardings=lambda name, tree: asked[name])
  assert jax.tree.map(lambda leaf: leaf.sharding, loaded.params) == asked


def test_sharded_parameters_are_cast(pixels_folder):
  loaded = interop.load_pipeline(
    pixels_folder, dtype="bfloat16", shardings=lambda name, tree: shard_over_four(tree)
  )
  assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}


def test_only_the_shards_of_a_kernel_are_read(pixels_folder, monkeypatch):
  sizes = {}
  read = tensor_file.Entry.read

  def counting(entry, index):
    array = read(entry, index)
    sizes.setdefault(entry.name, []).append(array.shape)
    return array

  monkeypatch.setattr(tensor_file.Entry, "read", counting)
  interop.load_network(pixels_folder / "unet", shardings=shard_over_four)
  # [16, 8, 3, 3] in torch, of which each of four devices holds a quarter of the outputs.
  assert sizes["down_blocks.1.resnets.0.conv1.weight"] == [(4, 8, 3, 3)] * 4


def test_a_replicated_parameter_is_read_once(pixels_folder, monkeypatch):
  names = []
  read = tensor_file.Entry.read
  monkeypatch.setattr(
    tensor_file.Entry, "read", lambda e, index: names.append(e.name) or read(e, index)
  )
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.P())
  interop.load_network(
    pixels_folder / "unet", shardings=lambda tree: jax.tree.map(lambda _: everywhere, tree)
  )
  assert sorted(names) == sorted(load_file(pixels_folder / UNET_FILE))


def test_shardings_of_another_tree_are_refused(pixels_folder):
  with pytest.raises(InputError, match=r"different trees: conv_in\.bias, "):
    interop.load_network(pixels_folder / "unet", shardings=lambda tree: {})


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_loading_takes_little_more_memory_than_the_parameters(tmp_path, stored):
  config = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "vocab_size": 5000,
  }
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), models.abstract(config))
  helpers.write_json(tmp_path / "config.json", config)
  write_weights.write_network(
    tmp_path, config, params, variant=None, dtype=stored, max_shard_size=10**9
  )
  size = 4 * trees.count(params)
  assert size > 200e6
  del params
  tracemalloc.start()
  try:
    interop.load_network(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert size < peak < 1.4 * size
