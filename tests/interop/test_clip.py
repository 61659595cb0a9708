"""CLIP models in the layouts of transformers, open_clip and HPS."""

import json
import logging
import types

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import open_clip, state_dict
from dmpo_jax.models import trees
from tests.models import torch_map
from tests.models.test_clip import IDS, IMAGES, PUBLISHED, TINY, network_of

# Where each of open_clip's names comes from in transformers' model, written for the test.
SINGLE = {
  "positional_embedding": "text_model.embeddings.position_embedding.weight",
  "logit_scale": "logit_scale",
  "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
  "visual.class_embedding": "vision_model.embeddings.class_embedding",
  "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
  "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
NORMS = {
  "visual.ln_pre": "vision_model.pre_layrnorm",
  "visual.ln_post": "vision_model.post_layernorm",
  "ln_final": "text_model.final_layer_norm",
}
LAYER = {
  "ln_1": "layer_norm1",
  "attn.out_proj": "self_attn.out_proj",
  "ln_2": "layer_norm2",
  "mlp.c_fc": "mlp.fc1",
  "mlp.c_proj": "mlp.fc2",
}
STATED = {
  "model_cfg": {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 23, "layers": 2, "width": 30, "head_width": 15, "patch_size": 7},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 3, "layers": 2},
  },
  "preprocess_cfg": {},
}


def to_open_clip(state, cat=torch.cat):
  """A state dict of transformers' CLIPModel in open_clip's names and layout."""
  new = {name: state[theirs] for name, theirs in SINGLE.items()}
  new["text_projection"] = state["text_projection.weight"].T
  new["visual.proj"] = state["visual_projection.weight"].T
  for name, theirs in NORMS.items():
    new |= {f"{name}.{leaf}": state[f"{theirs}.{leaf}"] for leaf in ("weight", "bias")}
  for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
    count = len({n.split(".")[3] for n in state if n.startswith(f"{tower}.encoder.layers.")})
    for i in range(count):
      ours, theirs = f"{prefix}transformer.resblocks.{i}", f"{tower}.encoder.layers.{i}"
      for leaf in ("weight", "bias"):
        for name, other in LAYER.items():
          new[f"{ours}.{name}.{leaf}"] = state[f"{theirs}.{other}.{leaf}"]
        parts = [state[f"{theirs}.self_attn.{p}_proj.{leaf}"] for p in "qkv"]
        new[f"{ours}.attn.in_proj_{leaf}"] = cat(parts)
  return {name: t.contiguous() if isinstance(t, torch.Tensor) else t for name, t in new.items()}


@pytest.fixture(scope="module")
def network():
  return torch_map.randomise(network_of(TINY))


@pytest.fixture(scope="module")
def expected(network):
  """Its parameters in our layout, flat."""
  return trees.flatten(torch_map.to_params(network, models.abstract(TINY)))


def check(loaded, expected):
  """Compares a loaded model with the tiny one."""
  config, params = loaded
  for part in ("text_config", "vision_config"):
    for field, value in TINY[part].items():
      # Only the number of patches is in the weights, and open_clip has no begin token.
      if field not in ("bos_token_id", "image_size"):
        assert config[part][field] == value
  flat = trees.flatten(params)
  assert flat.keys() == expected.keys()
  assert all(np.array_equal(flat[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_folder_of_transformers_is_read_whole_or_in_shards(network, expected, shard, tmp_path):
  network.save_pretrained(tmp_path, max_shard_size=shard)
  assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard == "1GB"
  check(interop.load_clip(tmp_path), expected)


def test_a_folder_with_pickled_weights_is_read(network, expected, tmp_path):
  network.config.architectures = ["CLIPModel"]
  network.config.save_pretrained(tmp_path)
  torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
  check(interop.load_clip(tmp_path), expected)


FILES = {
  "open_clip_model.safetensors": save_file,
  "open_clip_pytorch_model.bin": torch.save,
}


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_open_clip_is_read(network, expected, name, tmp_path):
  FILES[name](to_open_clip(network.state_dict()), tmp_path / name)
  (tmp_path / open_clip.CONFIG).write_text(json.dumps(STATED))
  check(interop.load_clip(tmp_path), expected)


def test_the_text_encoder_of_open_clip_may_have_its_own_prefix(network, expected):
  state = to_open_clip(network.state_dict())
  text = {n: t for n, t in state.items() if not n.startswith("visual.") and n != "logit_scale"}
  state = {n: t for n, t in state.items() if n not in text} | {f"text.{n}": text[n] for n in text}
  _, renamed = open_clip.convert(state, stated=STATED)
  names = state_dict.torch_names(trees.unflatten(expected))
  assert renamed.keys() == names.keys()


def shapes_of(name):
  """A published model's config, and its tensors in open_clip's layout without values."""
  config, _ = PUBLISHED[name]
  with torch.device("meta"):
    return config, to_open_clip(network_of(config).state_dict())


def entry(shape):
  return types.SimpleNamespace(shape=tuple(shape), dtype="float16", read=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_of_open_clip_fits_key_for_key_and_shape_for_shape(name):
  config, state = shapes_of(name)
  activation = config["text_config"]["hidden_act"]
  entries = {name: entry(tensor.shape) for name, tensor in state.items()}
  read, renamed = open_clip.convert(entries, activation=activation)
  assert models.read_config(read) == models.read_config(config)
  assert not state_dict.check_state(renamed, models.abstract(config))


def test_a_file_of_hps_is_open_clips_in_a_wrapper(tmp_path, monkeypatch, network, expected):
  monkeypatch.setitem(open_clip.HEAD_WIDTHS, 30, 15)
  monkeypatch.setattr(open_clip, "TEXT_HEAD_WIDTH", 8)
  state = to_open_clip(network.state_dict())
  torch.save(
    {"epoch": 1, "state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "h"
  )
  check(interop.load_clip(tmp_path / "h", activation="gelu"), expected)


def test_embeddings_agree_with_open_clip(tmp_path):
  try:
    import open_clip as theirs
  except (ImportError, RuntimeError) as error:
    pytest.skip(f"open_clip cannot be imported: {error}")
  config = STATED["model_cfg"]
  vision = theirs.CLIPVisionCfg(**config["vision_cfg"], mlp_ratio=1.5)
  text = theirs.CLIPTextCfg(**config["text_cfg"])
  network = torch_map.randomise(theirs.CLIP(20, vision, text))
  torch.save(network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
  (tmp_path / open_clip.CONFIG).write_text(json.dumps(STATED))
  read, params = interop.load_clip(tmp_path)
  clip = models.build(read)
  with torch.no_grad():
    image = network.encode_image(torch_map.nchw(IMAGES))
    ids = np.pad(IDS, ((0, 0), (0, 2)))
    text = network.encode_text(torch.from_numpy(ids))
  ours = torch_map.jit(clip.encode_image)(params, IMAGES)
  assert torch_map.relative(ours, image) < 1e-5
  ours = torch_map.jit(clip.encode_text)(params, ids.astype(np.int32))
  assert torch_map.relative(ours, text) < 1e-5


def test_the_dtype_of_the_parameters_can_be_chosen(network, tmp_path):
  network.save_pretrained(tmp_path)
  _, params = interop.load_clip(tmp_path, dtype="bfloat16")
  # A logarithm in bfloat16 would be off by a percent of its power.
  assert params.pop("logit_scale").dtype == np.float32
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({}, "does not tell its activation; state activation: quick_gelu for weights of OpenAI"),
    ({"visual.proj": None}, "no CLIP of open_clip: there is no visual.proj"),
    ({"visual.conv1.weight": None}, "the file holds no CLIP model; its first tensors are ln_final"),
    ({"attn_mask": torch.ones(2)}, "an image encoder of the width 30 is not known"),
  ],
)
def test_a_file_that_does_not_describe_a_model_is_refused(network, change, message, tmp_path):
  state = {**to_open_clip(network.state_dict()), **change}
  torch.save({n: t for n, t in state.items() if t is not None}, tmp_path / "x.pt")
  activation = "gelu" if change else None
  with pytest.raises(InputError, match=f"x.pt: .*{message}"):
    interop.load_clip(tmp_path / "x.pt", activation=activation)


def test_weights_of_another_architecture_are_refused(network, tmp_path):
  state = to_open_clip(network.state_dict())
  state["ln_final.weight"] = torch.ones(7)
  state["visual.extra"] = torch.ones(7)
  torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
  (tmp_path / open_clip.CONFIG).write_text(json.dumps(STATED))
  with pytest.raises(InputError, match=r"misshapen: text_model.final_layer_norm.weight is \[7\]"):
    interop.load_clip(tmp_path)


def test_tensors_that_no_layer_reads_are_named_once(network, tmp_path, caplog):
  state = to_open_clip(network.state_dict()) | {"logit_bias": torch.ones(())}
  torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
  (tmp_path / open_clip.CONFIG).write_text(json.dumps(STATED))
  with caplog.at_level(logging.WARNING):
    interop.load_clip(tmp_path)
  assert "1 tensors that no layer reads: logit_bias" in caplog.text


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({}, "holds no CLIP model: expected config.json"),
    (
      {"config.json": '{"architectures": ["CLIPTextModel"]}'},
      "describes a CLIPTextModel, expected",
    ),
    ({"config.json": json.dumps({"architectures": ["CLIPModel"]})}, "no model.safetensors"),
    ({"model.safetensors": ""}, "holds no CLIP model"),
  ],
)
def test_a_folder_without_a_model_is_refused(files, message, tmp_path):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  with pytest.raises(InputError, match=message):
    interop.load_clip(tmp_path)


def test_a_source_that_is_neither_file_nor_folder_is_refused():
  with pytest.raises(InputError, match="neither a folder nor"):
    interop.load_clip("absent.safetensors")
