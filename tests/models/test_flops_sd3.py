"""FLOPs of the networks of Stable Diffusion 3 against PyTorch's counts."""

import diffusers
import pytest
import torch
import transformers

from dmpo_jax.interop.published import SD3_TEXT_3
from dmpo_jax.models.layer_flops import attention, linear
from dmpo_jax.models.mmdit import flops as mmdit_flops
from dmpo_jax.models.t5 import flops as t5_flops
from dmpo_jax.models.vae import flops as vae_flops
from tests.models import published
from tests.models.test_flops import _torch_count

TOKENS = 7


def unused(config, height, width, tokens):
  """FLOPs of the queries of the last layer's text, whose results diffusers drops."""
  channels = config["num_attention_heads"] * config["attention_head_dim"]
  patches = (height // 2) * (width // 2)
  return linear(tokens, channels, channels) + attention(tokens, patches + tokens, channels)


@pytest.mark.parametrize("name", published.MMDITS)
def test_a_forward_pass_has_the_flops_that_pytorch_counts_but_of_unused_queries(name):
  config, height, width = published.MMDITS[name], 18, 10
  fields = {k: v for k, v in config.items() if not k.startswith("_")}
  with torch.device("meta"):
    network = diffusers.SD3Transformer2DModel(**fields)
    shapes = (1, 16, height, width), (1, TOKENS, 4096), (1, 2048), (1,)
    counted = _torch_count(network, *map(torch.zeros, shapes))
  expected = counted - unused(config, height, width, TOKENS)
  assert mmdit_flops.forward(config, height, width, TOKENS) == expected


@pytest.mark.parametrize(
  ("name", "pixels", "tera"),
  [
    ("sd3_medium", 512, 2.11),
    ("sd3_medium", 1024, 8.90),
    ("sd35_medium", 512, 2.44),
    ("sd35_medium", 1024, 11.25),
    ("sd35_large", 512, 7.97),
    ("sd35_large", 1024, 31.1),
  ],
)
def test_a_forward_pass_of_a_published_network_has_its_known_flops(name, pixels, tera):
  side = pixels // 8
  actual = mmdit_flops.forward(published.MMDITS[name], side, side, 333)
  assert actual == pytest.approx(tera * 1e12, rel=5e-3)


@pytest.mark.parametrize("change", [{}, {"feed_forward_proj": "relu", "d_kv": 16}], ids=str)
def test_t5_has_the_flops_that_pytorch_counts(change):
  changed = {"is_gated_act": False, "dense_act_fn": "relu"} if change else {}
  config = {**SD3_TEXT_3, "num_layers": 2, **change, **changed}
  with torch.device("meta"):
    network = transformers.T5EncoderModel(transformers.T5Config(**config))
    counted = _torch_count(network, torch.ones(1, 256, dtype=torch.int64))
  assert t5_flops.forward(config, 256) == counted


def test_an_autoencoder_of_16_channels_has_the_flops_that_pytorch_counts():
  config = published.VAES["sd3"]
  fields = {k: v for k, v in config.items() if not k.startswith("_")}
  with torch.device("meta"):
    network = diffusers.AutoencoderKL(**fields)
    encoded = _torch_count(network.encode, torch.zeros(1, 3, 40, 24))
    decoded = _torch_count(network.decode, torch.zeros(1, 16, 5, 3))
  assert vae_flops.encode(config, 40, 24) == encoded
  assert vae_flops.decode(config, 5, 3) == decoded
