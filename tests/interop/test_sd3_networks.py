"""Files of SD3's transformer and of T5: torch reads ours, we read torch's."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.numpy import load_file, save_file
from transformers import T5Config, T5EncoderModel

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import write_weights
from dmpo_jax.models import trees
from dmpo_jax.models.mmdit import positions
from tests.models import torch_map

TABLE = "pos_embed.pos_embed"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMER = {
  "sample_size": 8,
  "num_layers": 2,
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "in_channels": 4,
  "out_channels": 4,
  "joint_attention_dim": 12,
  "caption_projection_dim": 16,
  "pooled_projection_dim": 10,
  "pos_embed_max_size": 9,
  "dual_attention_layers": (0,),
  "qk_norm": "rms_norm",
}
T5 = {
  "vocab_size": 40,
  "d_model": 12,
  "d_kv": 6,
  "d_ff": 20,
  "num_layers": 2,
  "num_heads": 2,
  "feed_forward_proj": "gated-gelu",
}


@pytest.fixture(scope="module")
def network():
  return torch_map.randomise(SD3Transformer2DModel(**TRANSFORMER))


@pytest.fixture
def folder(network, tmp_path):
  network.save_pretrained(tmp_path / "transformer")
  return tmp_path / "transformer"


def write(folder, config, params, **options):
  folder.mkdir()
  options = {"variant": None, "dtype": None, "max_shard_size": 10**9} | options
  write_weights.write_network(folder, config, params, **options)
  (folder / "config.json").write_text(json.dumps(config))


def retable(folder, table):
  """Replaces the table in a file; None removes it."""
  state = load_file(folder / WEIGHTS)
  del state[TABLE]
  save_file(state if table is None else {**state, TABLE: table}, folder / WEIGHTS)


def test_a_transformer_is_read_and_written_again_bit_for_bit(folder, tmp_path):
  write(tmp_path / "ours", *interop.load_network(folder))
  theirs, ours = (load_file(path / WEIGHTS) for path in (folder, tmp_path / "ours"))
  assert theirs.keys() == ours.keys()
  assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)


def test_torch_reads_a_transformer_in_shards_with_its_table(folder, network, tmp_path):
  write(tmp_path / "ours", *interop.load_network(folder), max_shard_size=20_000)
  read, info = SD3Transformer2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  for name, tensor in network.state_dict().items():
    assert torch.equal(read.state_dict()[name], tensor), name


def test_a_transformer_of_half_precision_keeps_its_table_bit_for_bit(network, tmp_path):
  copy.deepcopy(network).to(torch.float16).save_pretrained(tmp_path / "half")
  write(tmp_path / "ours", *interop.load_network(tmp_path / "half"), dtype="float16")
  theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("half", "ours"))
  assert ours[TABLE].dtype == np.float16
  np.testing.assert_array_equal(theirs[TABLE], ours[TABLE])


def test_the_table_of_a_file_in_half_precision_is_the_rounded_one(network, tmp_path):
  copy.deepcopy(network).to(torch.float16).save_pretrained(tmp_path / "half")
  config, _ = interop.load_network(tmp_path / "half")
  stored = load_file(tmp_path / "half" / WEIGHTS)[TABLE]
  np.testing.assert_array_equal(models.buffers(config)[TABLE].compute("float32"), stored)


def test_another_table_than_diffusers_is_kept_with_a_warning(folder, tmp_path, caplog):
  table = positions.table(positions.Positions(-4.0, 0.5), 9, 16)
  retable(folder, table)
  config, params = interop.load_network(folder)
  assert "from -4 by steps of 0.5" in caplog.text
  caplog.clear()
  write(tmp_path / "ours", config, params)
  np.testing.assert_array_equal(load_file(tmp_path / "ours" / WEIGHTS)[TABLE], table)
  assert interop.load_network(tmp_path / "ours")[0] == config
  assert not caplog.text


def test_the_table_in_the_file_counts_and_not_the_one_of_a_former_config(folder, tmp_path):
  config = json.loads((folder / "config.json").read_text())
  config["_positions"] = {"first": -4.0, "step": 0.5, "dtype": "float32"}
  (folder / "config.json").write_text(json.dumps(config))
  loaded, _ = interop.load_network(folder)
  stored = load_file(folder / WEIGHTS)[TABLE]
  np.testing.assert_array_equal(models.buffers(loaded)[TABLE].compute(None), stored)


def test_a_file_without_a_table_has_the_computed_one(folder, caplog):
  retable(folder, None)
  config, _ = interop.load_network(folder)
  assert "_positions" not in config
  assert not caplog.text


@pytest.mark.parametrize(
  ("table", "message"),
  [
    (np.zeros((1, 81, 16), np.float32), r"pos_embed\.pos_embed: is no table of sines and cosines"),
    (np.zeros((1, 64, 16), np.float32), r"pos_embed is \[1, 64, 16\], expected \[1, 81, 16\]"),
    (np.zeros((1, 81, 16), np.int32), "pos_embed: is int32; expected float32"),
  ],
)
def test_a_damaged_table_is_refused_with_file_and_name(folder, table, message):
  retable(folder, table)
  with pytest.raises(InputError, match=message) as error:
    interop.load_network(folder)
  assert str(folder) in str(error.value)


@pytest.fixture
def t5(tmp_path):
  encoder = torch_map.randomise(T5EncoderModel(T5Config(**T5)))
  encoder.save_pretrained(tmp_path / "t5")
  return encoder, tmp_path / "t5"


def test_t5_is_read_and_torch_reads_ours(t5, tmp_path):
  encoder, folder = t5
  config, params = interop.load_network(folder)
  write(tmp_path / "ours", config, params)
  read, info = T5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not info["missing_keys"]
  for name, tensor in encoder.state_dict().items():
    assert torch.equal(read.state_dict()[name], tensor), name


@pytest.mark.parametrize("names", [["embed"], ["shared"], ["embed", "shared"]], ids=str)
def test_the_table_of_tokens_of_t5_is_read_under_either_name_and_under_both(t5, names):
  _, folder = t5
  _, expected = interop.load_network(folder)
  state = load_file(folder / "model.safetensors")
  both = {"embed": "encoder.embed_tokens.weight", "shared": "shared.weight"}
  table = next(state.pop(name) for name in both.values() if name in state)
  save_file({**state, **{both[n]: table.copy() for n in names}}, folder / "model.safetensors")
  _, params = interop.load_network(folder)
  assert trees.flatten(params).keys() == trees.flatten(expected).keys()
  np.testing.assert_array_equal(params["shared"]["embedding"], expected["shared"]["embedding"])
