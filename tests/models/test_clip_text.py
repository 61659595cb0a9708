"""The text encoder against transformers on small random configurations."""

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from dmpo_jax import models
from dmpo_jax.errors import InputError
from tests.models import torch_map

BASE = {
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
VARIANTS = {
  "quick_gelu": {"hidden_act": "quick_gelu"},
  "gelu": {"hidden_act": "gelu"},
  "old_end_token": {"eos_token_id": 2},
  "more_layers_than_ten": {"num_hidden_layers": 11},
}
# The end token is not in the last column, and where it comes first it comes again as padding.
IDS = np.array([[48, 5, 7, 49, 49, 49, 49], [48, 1, 2, 3, 4, 6, 49], [48, 49, 9, 9, 9, 9, 9]])


def load(**changes):
  """Transformers' network, ours, and the same weights for ours."""
  config = CLIPTextConfig(**{**BASE, **changes}, architectures=["CLIPTextModel"])
  network = torch_map.randomise(CLIPTextModel(config))
  as_dict = config.to_dict()
  shapes = models.abstract(as_dict)
  # This version of transformers leaves out the prefix of the published checkpoints.
  params = {"text_model": torch_map.to_params(network, shapes["text_model"])}
  return network, models.build(as_dict), params


@pytest.fixture(scope="module", params=VARIANTS)
def both(request):
  network, model, params = load(**VARIANTS[request.param])
  with torch.no_grad():
    wanted = network(torch.from_numpy(IDS))
  return jax.jit(model.apply)(params, IDS.astype(np.int32)), wanted


def test_the_hidden_states_agree_with_transformers(both):
  found, wanted = both
  assert torch_map.relative(found.last_hidden_state, wanted.last_hidden_state) < 1e-5


def test_the_pooled_state_agrees_with_transformers(both):
  found, wanted = both
  assert torch_map.relative(found.pooled, wanted.pooler_output) < 1e-5


def test_a_later_token_does_not_change_an_earlier_state():
  _, model, params = load()
  changed = IDS.astype(np.int32).copy()
  changed[:, 4] = 17
  apply = jax.jit(model.apply)
  before = apply(params, IDS.astype(np.int32)).last_hidden_state
  after = apply(params, changed).last_hidden_state
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert not np.allclose(before[:, 4:], after[:, 4:])


def test_the_result_has_the_dtype_that_was_asked_for():
  _, model, params = load()
  output = jax.eval_shape(lambda p, i: model.apply(p, i, dtype="bfloat16"), params, IDS)
  assert output.last_hidden_state.dtype == output.pooled.dtype == "bfloat16"


def test_more_tokens_than_positions_are_refused():
  _, model, params = load()
  with pytest.raises(InputError, match=r"L <= 9.*truncate"):
    model.apply(params, np.zeros((1, 10), np.int32))
