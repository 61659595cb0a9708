"""ImageReward's network against transformers' BLIP: at small size, and names and shapes at full."""

import types

import numpy as np
import pytest
import torch
from flax import nnx

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import blip, state_dict
from dmpo_jax.models import trees
from dmpo_jax.models.blip.config import DEFAULTS, read
from dmpo_jax.models.blip.model import ImageReward
from tests.models import blips, torch_map

R = np.random.default_rng(0)
IMAGES = R.standard_normal((3, 16, 16, 3), np.float32)
IDS = R.integers(1, 60, (3, 7))
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])


@pytest.fixture(scope="module")
def network():
  return blips.make()


@pytest.fixture(scope="module")
def loaded(network, tmp_path_factory):
  """Config and parameters, read from a file like ImageReward.pt."""
  file = tmp_path_factory.mktemp("blip") / "ImageReward.pt"
  unused = {"blip.vision_proj.weight": torch.ones(3, 4), "blip.text_proj.bias": torch.ones(3)}
  positions = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
  torch.save(network.named_state() | unused | positions, file)
  return interop.load_image_reward(file)


def test_rewards_agree_with_transformers(network, loaded):
  config, params = loaded
  with torch.no_grad():
    expected = network(torch_map.nchw(IMAGES), torch.from_numpy(IDS), torch.from_numpy(MASK))
  apply = torch_map.jit(models.build(config).apply)
  actual = apply(params, IMAGES, IDS.astype(np.int32), MASK.astype(np.int32))
  assert torch_map.relative(actual, expected) < 1e-5
  assert np.std(expected.numpy()) > 0.1 * np.abs(expected.numpy()).max()


@pytest.fixture(scope="module")
def module(loaded):
  """The network as a module."""
  config, params = loaded
  graph, _ = nnx.split(ImageReward(read(config), models.Compute(attention="plain")))
  return nnx.merge(graph, trees.int_keys(params))


def test_states_of_the_image_encoder_agree_with_transformers(network, module):
  with torch.no_grad():
    expected = network.vision(torch_map.nchw(IMAGES)).last_hidden_state
  assert torch_map.relative(torch_map.jit(module.visual_encoder)(IMAGES), expected) < 1e-5


def test_a_layer_of_text_with_cross_attention_agrees_with_transformers(network, module):
  x, image = (R.standard_normal(s, np.float32) for s in ((3, 7, 64), (3, 17, 128)))
  bias = np.where(MASK, 0, -1e4).astype(np.float32)[:, None, None]
  with torch.no_grad():
    expected = network.text.encoder.layer[1](
      *(torch.from_numpy(a) for a in (x, image)), attention_mask=torch.from_numpy(bias)
    )
  actual = torch_map.jit(module.text_encoder.encoder.layer[1])(x, image, bias)
  assert torch_map.relative(actual, expected) < 1e-5


def test_padding_does_not_change_a_reward(loaded):
  config, params = loaded
  apply = torch_map.jit(models.build(config).apply)
  changed = np.where(MASK, IDS, 5)
  rewards = [
    apply(params, IMAGES, i.astype(np.int32), MASK.astype(np.int32)) for i in (IDS, changed)
  ]
  np.testing.assert_array_equal(*rewards)


def test_the_published_checkpoint_fits_key_for_key_and_shape_for_shape():
  with torch.device("meta"):
    state = blips.Torch(DEFAULTS).named_state()
  entries = {
    name: types.SimpleNamespace(shape=tuple(tensor.shape), dtype="float32")
    for name, tensor in state.items()
  }
  config, renamed = blip.convert(entries)
  assert models.read_config(config) == models.read_config(blips.FULL)
  abstract = models.abstract(config)
  assert not state_dict.check_state(renamed, abstract)
  assert trees.count(abstract) == sum(tensor.numel() for tensor in state.values())


def test_a_file_of_another_network_is_refused(tmp_path):
  torch.save({"blip.text_proj.weight": torch.ones(2)}, tmp_path / "x.pt")
  with pytest.raises(
    InputError, match=r"x\.pt: the file does not hold ImageReward: there is no vis"
  ):
    interop.load_image_reward(tmp_path / "x.pt")


def test_missing_and_misshapen_weights_are_listed(network, tmp_path):
  state = network.named_state()
  del state["blip.visual_encoder.norm.bias"]
  state["mlp.layers.7.weight"] = torch.ones(2, 16)
  torch.save(state, tmp_path / "x.pt")
  with pytest.raises(InputError, match=r"missing: visual_encoder.norm.bias\n(.*\n)*.*layers.7"):
    interop.load_image_reward(tmp_path / "x.pt")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"vision_heads": 3}, "vision_heads = 3 .* a divisor of vision_width = 128"),
    ({"text_layers": 0}, "text_layers = 0"),
    ({"size": 3}, "unknown field of a ImageReward config 'size'"),
  ],
)
def test_a_config_that_is_not_supported_is_refused(change, message):
  with pytest.raises(InputError, match=message):
    models.read_config({**blips.TINY, **change})


def test_inputs_of_other_shapes_are_refused():
  model, params = models.build(blips.TINY), models.abstract(blips.TINY)
  with pytest.raises(InputError, match=r"integers \[B, L\] with L <= 40"):
    model.apply(params, IMAGES, np.zeros((3, 41), np.int32), np.zeros((3, 41), np.int32))
  with pytest.raises(InputError, match=r"floats \[B, 16, 16, 3\]"):
    model.apply(params, IMAGES[:, :15], IDS, MASK)
