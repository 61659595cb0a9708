"""T5's encoder against transformers: outputs and gradients at small size, names at full size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import published
from dmpo_jax.models.t5 import model as t5
from tests.models import torch_map

# More channels in the heads together than in the stream; tokens further apart than 12.
BASE = {
  "architectures": ["T5EncoderModel"],
  "vocab_size": 40,
  "d_model": 12,
  "d_kv": 6,
  "d_ff": 20,
  "num_layers": 2,
  "num_heads": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 12,
}
VARIANTS = {"t5": BASE, "t5_v1_1": {**BASE, "feed_forward_proj": "gated-gelu"}}
IDS = np.random.default_rng(0).integers(0, 40, (3, 19))
IDS[1, 5:] = 0  # padding, which is not masked


def load(config, implementation=None):
  """Transformers' network, our model, and parameters with the same weights."""
  fields = {k: v for k, v in config.items() if k != "architectures"}
  network = torch_map.randomise(transformers.T5EncoderModel(transformers.T5Config(**fields)))
  params = torch_map.to_params(Untied(network), models.abstract(config))
  return network, models.build(config, compute=models.Compute(attention=implementation)), params


class Untied:
  """A T5 whose tied table of tokens has one name."""

  def __init__(self, network):
    self.network = network

  def state_dict(self):
    return {k: v for k, v in self.network.state_dict().items() if "embed_tokens" not in k}

  def named_parameters(self):
    return self.network.named_parameters()


@pytest.fixture(scope="module", params=VARIANTS)
def both(request):
  """(states, gradients by parameter) of both, of loss = sum(w * states)."""
  network, model, params = load(VARIANTS[request.param])
  theirs = network(torch.tensor(IDS)).last_hidden_state
  w = np.random.default_rng(1).standard_normal(theirs.shape, np.float32)
  (theirs * torch.tensor(w)).sum().backward()

  def loss(params):
    y = model.apply(params, IDS)
    return (w * y).sum(), y

  (_, ours), gradients = torch_map.jit(jax.value_and_grad(loss, has_aux=True))(params)
  expected = torch_map.to_gradients(Untied(network), params)
  return (ours, gradients), (theirs.detach().numpy(), expected)


def test_the_states_agree_with_transformers(both):
  (actual, _), (expected, _) = both
  assert torch_map.relative(actual, expected) < 1e-5


def test_the_gradient_of_every_parameter_agrees_with_transformers(both):
  (_, actual), (_, expected) = both
  name, off = torch_map.worst(actual, expected)
  assert off < 1e-3, name


@pytest.mark.parametrize(("count", "distance"), [(32, 128), (8, 12), (4, 2), (64, 1000)])
def test_the_buckets_of_distances_are_those_of_transformers(count, distance):
  positions = torch.arange(600)
  expected = T5Attention._relative_position_bucket(
    positions[None, :] - positions[:, None], True, count, distance
  )
  np.testing.assert_array_equal(t5.buckets(600, count, distance), expected)


def test_bfloat16_deviates_from_float32_no_more_than_in_transformers():
  network, model, params = load(VARIANTS["t5_v1_1"], "plain")
  exact = network(torch.tensor(IDS)).last_hidden_state.detach().numpy()
  theirs = network.to(torch.bfloat16)(torch.tensor(IDS)).last_hidden_state.float().detach().numpy()
  ours = torch_map.jit(lambda p: model.apply(p, IDS, dtype=jnp.bfloat16))(params)
  assert ours.dtype == jnp.bfloat16
  off, allowed = (np.square(np.float32(y) - exact).mean() ** 0.5 for y in (ours, theirs))
  assert 0 < off < 1.5 * allowed


def test_float16_is_computed_in_float32():
  _, model, params = load(VARIANTS["t5_v1_1"], "plain")
  exact, actual = (
    torch_map.jit(functools.partial(model.apply, dtype=dtype))(params, IDS)
    for dtype in (jnp.float32, jnp.float16)
  )
  np.testing.assert_array_equal(actual, exact.astype(jnp.float16))


def test_the_full_size_encoder_has_the_names_and_shapes_of_transformers():
  config = published.SD3_TEXT_3
  with torch.device("meta"):
    theirs = transformers.T5EncoderModel(transformers.T5Config(**config))
  expected = torch_map.torch_shapes(Untied(theirs))
  name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  expected |= {n: tuple(theirs.state_dict()[n].shape) for n in (name, "shared.weight")}
  assert torch_map.our_shapes(models.abstract(config)) == expected


def test_t5_xxl_has_4_76_billion_parameters():
  count = models.trees.count(models.abstract(published.SD3_TEXT_3))
  assert count == pytest.approx(4.762e9, abs=1e6)


def test_every_field_that_transformers_writes_is_accepted():
  config = VARIANTS["t5_v1_1"]
  fields = {k: v for k, v in config.items() if k != "architectures"}
  written = {**transformers.T5Config(**fields).to_dict(), "architectures": ["T5EncoderModel"]}
  assert jax.tree.structure(models.abstract(written)) == jax.tree.structure(models.abstract(config))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'.* 'relu', 'gated-gelu"),
    ({"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu'.* 'relu', which feed_forward_proj = 'relu'"),
    ({"is_gated_act": True}, "is_gated_act = True.* False, which feed_forward_proj"),
    ({"num_layers": 0}, "num_layers = 0.* a positive integer"),
    ({"num_layers": 10**5}, "num_layers = 100000.* at most 256"),
    ({"d_kv": "64"}, "d_kv = '64'.* a positive integer"),
    ({"layer_norm_epsilon": -1}, "layer_norm_epsilon = -1.* not negative"),
    ({"relative_attention_num_buckets": 6}, "num_buckets = 6.* a multiple of 4"),
    ({"relative_attention_max_distance": 2}, r"max_distance = 2.* more than .* / 4 = 2"),
    ({"is_decoder": True}, "is_decoder = True is not supported, expected False"),
    ({"widht": 5}, "unknown field of a T5EncoderModel config 'widht'"),
  ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field_and_value(change, message):
  with pytest.raises(InputError, match=message):
    models.build({**BASE, **change})


@pytest.mark.parametrize(
  "ids", [np.zeros((2, 3), np.float32), np.zeros(3, int), np.zeros((1, 9000), int)], ids=str
)
def test_ids_that_are_no_captions_are_refused(ids):
  with pytest.raises(InputError, match=r"input_ids must be integers \[B, L\]"):
    models.build(BASE).apply(models.abstract(BASE), ids)
