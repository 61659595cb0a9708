"""Components that a run trains, and layers that its LoRAs adapt."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from dmpo_jax import models, pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.training import setup
from tests.interop import tiny as tiny_pipelines
from tests.training.tiny import smallest_config


@pytest.fixture(scope="module")
def pipeline():
  return setup.load_pipeline(smallest_config(), ["the digit seven"])


@pytest.fixture
def config():
  result = smallest_config()
  result.trained = ()
  result.loss = {"name": "dpo", "beta": 100.0}
  return result


@pytest.fixture
def lora_config(config):
  config.trained = ("unet", "text_encoder")
  config.lora.rank, config.lora.alpha = 2, 2.0
  return config


def _layers(lora):
  return {name.rpartition(".")[0] for name in trees.flatten(lora)}


def test_the_policy_of_a_run_starts_as_the_reference(pipeline, config):
  trained, _, reference = setup.split_params(config, pipeline)
  for a, b in zip(*(trees.flatten(x["unet"]).values() for x in (trained, reference)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_policy_of_a_run_with_lora_starts_as_the_reference(pipeline, lora_config):
  trained, frozen, reference = setup.split_params(lora_config, pipeline)
  assert reference == {}
  for name, lora in trained.items():
    merged = trees.flatten(models.lora.merge(frozen[name], lora, alpha=2.0))
    for layer, leaf in trees.flatten(frozen[name]).items():
      np.testing.assert_array_equal(merged[layer], leaf)


def test_the_variant_that_the_config_names_is_trained(tmp_path, config):
  folder = tiny_pipelines.write_tiny_pixels(tmp_path / "pixels")
  file = folder / "unet/diffusion_pytorch_model.safetensors"
  state = {name: a + np.float32(1) for name, a in load_file(file).items()}
  save_file(state, file.with_suffix(".non_ema.safetensors"))
  config.model = ConfigDict()
  config.pipeline = str(folder)
  plain = setup.load_pipeline(config, []).params["unet"]["conv_in"]["bias"]
  config.variant = "non_ema"
  np.testing.assert_allclose(
    setup.load_pipeline(config, []).params["unet"]["conv_in"]["bias"], plain + 1, rtol=1e-6
  )


def test_the_revision_that_the_config_names_is_asked_for(tmp_path, config):
  config.model = ConfigDict()
  config.pipeline = str(tiny_pipelines.write_tiny_pixels(tmp_path / "pixels"))
  config.revision = "v1"
  with pytest.raises(InputError, match=r"revision is 'v1', but .* is a folder"):
    setup.load_pipeline(config, [])


def test_an_empty_config_trained_is_the_denoiser(config, pipeline):
  assert setup.trained_components(config, pipelines.build(pipeline)) == ("unet",)
  trained, frozen, _ = setup.split_params(config, pipeline)
  assert (set(trained), set(frozen)) == ({"unet"}, {"text_encoder"})


def test_an_unknown_component_in_config_trained_is_refused_with_a_suggestion(config, pipeline):
  config.trained = ("unett",)
  with pytest.raises(InputError, match=r"config\.trained.*'unett'; did you mean 'unet'"):
    setup.trained_components(config, pipelines.build(pipeline))


def test_loras_adapt_attention_by_default(lora_config, pipeline):
  trained, _, _ = setup.split_params(lora_config, pipeline)
  assert {name.rpartition(".")[2] for name in _layers(trained["unet"])} <= {
    *("to_q", "to_k", "to_v"),
    "0",  # to_out.0
  }
  assert all("self_attn" in name for name in _layers(trained["text_encoder"]))


def test_targets_of_one_component_leave_the_defaults_of_the_others(lora_config, pipeline):
  default, _, _ = setup.split_params(lora_config, pipeline)
  lora_config.lora.targets.unet = ("*.to_q",)
  trained, _, _ = setup.split_params(lora_config, pipeline)
  assert {name.rpartition(".")[2] for name in _layers(trained["unet"])} == {"to_q"}
  assert _layers(trained["text_encoder"]) == _layers(default["text_encoder"])


def test_an_unknown_component_in_lora_targets_is_refused_with_a_suggestion(lora_config, pipeline):
  lora_config.lora.targets.text_encodr = models.lora.TEXT_ATTENTION
  with pytest.raises(
    InputError, match=r"config\.lora\.targets.*'text_encodr'; did you mean 'text_encoder'"
  ):
    setup.split_params(lora_config, pipeline)
