"""Text encoders against transformers: outputs at small size, names and shapes at full size."""

import jax
import numpy as np
import pytest
import torch
import transformers

from dmpo_jax import models
from dmpo_jax.errors import InputError
from tests.models import published, torch_map

BASE = {
  "architectures": ["CLIPTextModel"],
  "vocab_size": 50,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "max_position_embeddings": 9,
  "bos_token_id": 48,
  "eos_token_id": 49,
  "pad_token_id": 49,
}
PROJECTED = {**BASE, "architectures": ["CLIPTextModelWithProjection"], "projection_dim": 20}
VARIANTS = {
  "sd15": ({**BASE, "hidden_act": "quick_gelu"}, "cpu"),
  "sd21_with_the_old_end_token": ({**BASE, "hidden_act": "gelu", "eos_token_id": 2}, "plain"),
  "sdxl_2": ({**PROJECTED, "hidden_act": "gelu"}, "plain"),
  "sdxl_2_with_the_old_end_token": ({**PROJECTED, "hidden_act": "gelu", "eos_token_id": 2}, "cpu"),
}
# The end token is not always in the last column, and it repeats as padding. Token 2, and tokens
# with a larger id than all before them, distinguish the two rules for the end of the text.
IDS = np.array([[48, 5, 7, 49, 49, 49, 49], [48, 1, 2, 3, 4, 6, 49], [48, 49, 9, 9, 9, 9, 9]])


def network_of(config):
  """Transformers' network."""
  kind = getattr(transformers, config["architectures"][0])
  return kind(transformers.CLIPTextConfig(**config))


def named_as_published(shapes, config):
  """The names with the prefix of published checkpoints, which transformers 5 omits."""
  inside = config["architectures"] == ["CLIPTextModel"]
  return {f"text_model.{name}" if inside else name: shape for name, shape in shapes.items()}


def load(config, implementation=None):
  """Transformers' network, our model, and parameters with the same weights."""
  network = torch_map.randomise(network_of(config))
  shapes = models.abstract(config)
  return (
    network,
    models.build(config, compute=models.Compute(attention=implementation)),
    lift(network, shapes),
  )


def lift(network, shapes, convert=torch_map.to_params):
  """A tree of weights or gradients from a network with or without the prefix."""
  if "text_projection" in shapes:
    return convert(network, shapes)
  return {"text_model": convert(network, shapes["text_model"])}


def outputs(theirs):
  """Transformers' outputs by the names of ours."""
  actual = {"last": theirs.last_hidden_state, "penultimate": theirs.hidden_states[-2]}
  if hasattr(theirs, "pooler_output"):
    return actual | {"pooled": theirs.pooler_output}
  return actual | {"text_embeds": theirs.text_embeds}


@pytest.fixture(scope="module", params=VARIANTS)
def both(request):
  """Outputs and parameter gradients of both, of loss = sum over outputs of sum(w * output)."""
  config, implementation = VARIANTS[request.param]
  network, model, params = load(config, implementation)
  expected = outputs(network(torch.from_numpy(IDS), output_hidden_states=True))
  r = np.random.default_rng(1)
  w = {name: r.standard_normal(y.shape, np.float32) for name, y in expected.items()}
  sum((torch.from_numpy(w[n]) * y).sum() for n, y in expected.items()).backward()

  def loss(params):
    y = model.apply(params, IDS.astype(np.int32))
    named = {"last": y.last_hidden_state, "penultimate": y.penultimate}
    named |= {"pooled": y.pooled, "text_embeds": y.text_embeds}
    return sum((w[n] * named[n]).sum() for n in w), y

  (_, actual), grads = torch_map.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return (actual, grads), (expected, lift(network, params, torch_map.to_gradients))


def test_the_last_hidden_states_agree_with_transformers(both):
  (actual, _), (expected, _) = both
  assert torch_map.relative(actual.last_hidden_state, expected["last"].detach()) < 1e-5


def test_the_penultimate_hidden_states_agree_with_transformers(both):
  (actual, _), (expected, _) = both
  assert torch_map.relative(actual.penultimate, expected["penultimate"].detach()) < 1e-5


def test_the_pooled_state_or_its_projection_agrees_with_transformers(both):
  (actual, _), (expected, _) = both
  name = "text_embeds" if "text_embeds" in expected else "pooled"
  assert torch_map.relative(getattr(actual, name), expected[name].detach()) < 1e-5


def test_the_gradient_of_every_parameter_agrees_with_transformers(both):
  (_, actual), (_, expected) = both
  name, off = torch_map.worst(actual, expected)
  assert off < 1e-3, name


@pytest.fixture(scope="module")
def deep():
  """Eleven layers, so that layer numbers as strings are not in order; compiled once."""
  network, model, params = load({**BASE, "num_hidden_layers": 11}, "plain")
  return network, params, torch_map.jit(model.apply)


def test_more_than_ten_layers_agree_with_transformers(deep):
  network, params, apply = deep
  with torch.no_grad():
    expected = network(torch.from_numpy(IDS)).last_hidden_state
  assert torch_map.relative(apply(params, IDS.astype(np.int32)).last_hidden_state, expected) < 1e-5


def test_a_later_token_does_not_change_an_earlier_state(deep):
  _, params, apply = deep
  changed = IDS.astype(np.int32).copy()
  changed[:, 4] = 17
  before = apply(params, IDS.astype(np.int32)).last_hidden_state
  after = apply(params, changed).last_hidden_state
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert not np.allclose(before[:, 4:], after[:, 4:])


def test_a_text_without_an_end_token_is_pooled_at_its_first_token(deep):
  _, params, apply = deep
  output = apply(params, np.full((3, 7), 9, np.int32))
  np.testing.assert_array_equal(output.pooled, output.last_hidden_state[:, 0])


def test_all_outputs_have_the_requested_dtype():
  model, params = models.build(PROJECTED), models.abstract(PROJECTED)
  output = jax.eval_shape(lambda p, i: model.apply(p, i, dtype="bfloat16"), params, IDS)
  assert {leaf.dtype.name for leaf in output} == {"bfloat16"}


def test_an_encoder_without_projection_has_no_text_embeds():
  output = jax.eval_shape(models.build(BASE).apply, models.abstract(BASE), IDS)
  assert output.text_embeds is None


@pytest.mark.parametrize("name", published.TEXT_ENCODERS)
def test_a_published_encoder_has_the_names_and_shapes_of_transformers(name):
  config = published.TEXT_ENCODERS[name]
  with torch.device("meta"):
    theirs = network_of(config)
  expected = named_as_published(torch_map.torch_shapes(theirs), config)
  assert torch_map.our_shapes(models.abstract(config)) == expected


def test_more_tokens_than_positions_are_refused():
  with pytest.raises(InputError, match=r"L <= 9.*truncate"):
    models.build(BASE).apply(models.abstract(BASE), np.zeros((1, 10), np.int32))
