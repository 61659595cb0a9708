"""FLOPs of a train step of Stable Diffusion."""

import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.models.clip import flops as clip_flops
from dmpo_jax.models.unet import flops as unet_flops
from dmpo_jax.models.vae import flops as vae_flops
from dmpo_jax.pipelines import stable_diffusion_flops
from tests.models import published


def _flops(**options) -> dict[str, int]:
  configs = {"unet": published.SD15_UNET, "text_encoder": published.SD15_TEXT}
  configs["vae"] = published.SD_VAE
  return stable_diffusion_flops.per_example(configs, height=512, width=512, tokens=77, **options)


@pytest.mark.parametrize(
  ("options", "forwards"),
  [
    ({}, 8),
    ({"reference": False}, 6),
    ({"reference": False, "images": 1}, 3),
    ({"lora": True}, 6),
    ({"lora": True, "reference": False}, 4),
  ],
  ids=["dpo", "mapo", "sft on single images", "dpo with LoRA", "mapo with LoRA"],
)
def test_an_example_costs_this_many_forward_passes_of_the_unet(options, forwards):
  one = unet_flops.forward(published.SD15_UNET, 64, 64, 77)
  assert _flops(**options)["unet"] == forwards * one


def test_frozen_encoders_cost_a_caption_and_two_encodings_and_nothing_when_cached():
  by_component = _flops()
  assert by_component["text_encoder"] == clip_flops.forward(published.SD15_TEXT, 77)
  assert by_component["vae"] == 2 * vae_flops.encode(published.SD_VAE, 512, 512)
  assert _flops(cached=("vae", "text_encoder")) == {"unet": by_component["unet"]}


def test_a_cached_component_cannot_be_trained():
  with pytest.raises(InputError, match="text_encoder"):
    _flops(trained=("unet", "text_encoder"), cached=("text_encoder",))


def test_an_edit_costs_a_wider_first_convolution_and_one_more_encoding():
  configs = {"unet": published.SD15_UNET, "vae": published.SD_VAE}
  edits = {**configs, "unet": {**published.SD15_UNET, "in_channels": 8}}
  size = {"height": 512, "width": 512, "tokens": 77}
  plain, wide = (stable_diffusion_flops.per_example(c, **size) for c in (configs, edits))
  # 8 forwards; a multiplication and an addition for each weight of 4 more channels.
  assert wide["unet"] - plain["unet"] == 8 * 2 * (64 * 64) * (3 * 3 * 4 * 320)
  assert wide["vae"] == 3 * vae_flops.encode(published.SD_VAE, 512, 512)
