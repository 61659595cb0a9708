"""FLOPs of networks against the counts of PyTorch and XLA, and the peaks of devices."""

import jax
import jax.numpy as jnp
import pytest

from dmpo_jax import models
from dmpo_jax.models import flops
from dmpo_jax.models.clip import flops as clip_flops
from dmpo_jax.models.unet import flops as unet_flops
from dmpo_jax.models.vae import flops as vae_flops
from tests.models import published

TOKENS = 7
UNET = {
  **published.SD15_UNET,
  "block_out_channels": [32, 64, 96],
  "down_block_types": [published.CROSS_DOWN, published.PLAIN_DOWN, published.CROSS_DOWN],
  "up_block_types": [published.CROSS_UP, published.CROSS_UP, published.PLAIN_UP],
  "layers_per_block": [1, 2, 1],
  "transformer_layers_per_block": [1, 1, 3],
  "cross_attention_dim": 24,
}


def _torch_count(network, *inputs, **more) -> int:
  """PyTorch's count on meta tensors, with attention decomposed into products."""
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  with FlopCounterMode(display=False) as counter, torch.no_grad():
    network(*inputs, **more)
  return counter.get_total_flops()


def _torch_unet(config: dict, height: int, width: int, tokens: int) -> int:
  import diffusers
  import torch

  fields = {name: value for name, value in config.items() if not name.startswith("_")}
  with torch.device("meta"):
    network = diffusers.UNet2DConditionModel(**fields)
    inputs = (torch.zeros(1, 4, height, width), torch.zeros(1))
    context = torch.zeros(1, tokens, network.config.cross_attention_dim)
    added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    return _torch_count(network, *inputs, context, added_cond_kwargs=added)


def test_a_forward_pass_of_sd15_is_0_803_tflop_and_of_sdxl_6_76():
  assert unet_flops.forward(published.SD15_UNET, 64, 64, 77) == pytest.approx(0.803e12, rel=1e-3)
  assert unet_flops.forward(published.SDXL_UNET, 128, 128, 77) == pytest.approx(6.76e12, rel=1e-3)


@pytest.mark.parametrize(
  ("config", "height", "width", "tokens"),
  [
    (published.SD15_UNET, 64, 64, 77),
    (published.SDXL_UNET, 128, 128, 77),
    (UNET, 13, 10, TOKENS),
    ({**UNET, "mid_block_type": None}, 13, 10, TOKENS),
    ({**UNET, "mid_block_type": "UNetMidBlock2D"}, 13, 10, TOKENS),
  ],
  ids=["sd15", "sdxl", "odd sizes and depths", "no middle block", "a middle without attention"],
)
def test_a_forward_pass_has_the_flops_that_pytorch_counts_on_diffusers_network(
  config, height, width, tokens
):
  counted = _torch_unet(config, height, width, tokens)
  assert unet_flops.forward(config, height, width, tokens) == counted


def test_encoding_and_decoding_have_the_flops_that_pytorch_counts_on_diffusers_autoencoder():
  import diffusers
  import torch

  config = {**published.SD_VAE, "block_out_channels": [32, 64, 96], "layers_per_block": 1}
  config |= {"down_block_types": ["DownEncoderBlock2D"] * 3}
  config |= {"up_block_types": ["UpDecoderBlock2D"] * 3}
  fields = {name: value for name, value in config.items() if not name.startswith("_")}
  with torch.device("meta"):
    network = diffusers.AutoencoderKL(**fields)
    encoded = _torch_count(network.encode, torch.zeros(1, 3, 36, 24))
    decoded = _torch_count(network.decode, torch.zeros(1, 4, 9, 6))
  assert vae_flops.encode(config, 36, 24) == encoded
  assert vae_flops.decode(config, 9, 6) == decoded


@pytest.mark.parametrize("name", ["SD15_TEXT", "SDXL_TEXT_2"])
def test_a_text_encoder_has_the_flops_that_pytorch_counts_on_transformers(name):
  import torch
  import transformers

  config = getattr(published, name)
  kind = getattr(transformers, config["architectures"][0])
  with torch.device("meta"):
    network = kind(transformers.CLIPTextConfig(**config))
    counted = _torch_count(network, torch.ones(1, 77, dtype=torch.int64))
  assert clip_flops.forward(config, 77) == pytest.approx(counted, rel=1e-6)


def test_a_forward_pass_has_the_flops_that_xla_counts_up_to_borders_and_elementwise_work():
  network = models.build(published.SD15_UNET, compute=models.Compute(attention="plain"))

  def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)

  inputs = (shape(1, 64, 64, 4), shape(1), shape(1, 77, 768))
  lowered = jax.jit(network.apply).lower(models.abstract(published.SD15_UNET), *inputs)
  counted = lowered.cost_analysis()["flops"]
  assert unet_flops.forward(published.SD15_UNET, 64, 64, 77) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989.4e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("cpu", None),
    ("NVIDIA L4", 121e12),
    ("TPU v4 lite", None),
  ],
)
def test_a_device_has_the_peak_of_its_data_sheet_or_none(kind, expected):
  assert flops.peak(kind) == expected
