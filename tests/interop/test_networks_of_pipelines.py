"""Outputs of a pipeline's networks here and in torch, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from dmpo_jax import interop, models
from tests.interop import tiny
from tests.interop.helpers import draw

CAPTIONS = ["the digit seven", "", "one " * 9]


@pytest.fixture(scope="module")
def fresh(pipeline, tokenizer):
  """A pixel pipeline with our own initial parameters."""
  keys = jax.random.split(jax.random.key(0))
  params = {
    name: models.build(pipeline.configs[name]).init(key)
    for name, key in zip(("unet", "text_encoder"), keys, strict=True)
  }
  return interop.pixel_pipeline(pipeline.configs, params, tokenizer)


@pytest.fixture(scope="module")
def fresh_folder(fresh, tmp_path_factory):
  folder = tmp_path_factory.mktemp("ours") / "fresh"
  interop.save_pipeline(folder, fresh)
  return folder


@pytest.fixture(scope="module")
def apply_unet(pipeline):
  return jax.jit(models.build(pipeline.configs["unet"]).apply)


@pytest.fixture(scope="module")
def apply_text(pipeline):
  return jax.jit(models.build(pipeline.configs["text_encoder"]).apply)


def assert_same_unet(apply_unet, params, torch_unet):
  x, t, context = draw(4, 8, 8, 1), np.array([0, 1, 500, 999], np.int32), draw(4, tiny.CONTEXT, 12)
  ours = apply_unet(params, x, t, context)
  with torch.no_grad():
    theirs = torch_unet(
      torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), torch.from_numpy(context)
    ).sample
  np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def assert_same_text(apply_text, params, torch_text, tokenizer):
  ids = np.resize(interop.tokenize(tokenizer, CAPTIONS).ids, (4, tiny.CONTEXT))
  ours = apply_text(params, ids)
  with torch.no_grad():
    theirs = torch_text(torch.from_numpy(ids).long())
  np.testing.assert_allclose(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(ours.pooled, theirs.pooler_output, atol=1e-5, rtol=1e-5)


def test_the_unet_of_a_torch_folder_computes_what_torch_computes(apply_unet, pipeline):
  assert_same_unet(apply_unet, pipeline.params["unet"], tiny.make_unet(**tiny.PIXELS))


def test_the_text_encoder_of_a_torch_folder_computes_what_torch_computes(
  apply_text, pipeline, tokenizer
):
  network = tiny.make_text_encoder(tokenizer)
  assert_same_text(apply_text, pipeline.params["text_encoder"], network, tokenizer)


def test_torch_loads_our_unet_and_computes_what_we_compute(fresh, fresh_folder, apply_unet):
  loaded = UNet2DConditionModel.from_pretrained(fresh_folder, subfolder="unet").eval()
  assert_same_unet(apply_unet, fresh.params["unet"], loaded)


def test_transformers_loads_our_text_encoder_and_computes_what_we_compute(
  fresh, fresh_folder, apply_text, tokenizer
):
  loaded = CLIPTextModel.from_pretrained(fresh_folder, subfolder="text_encoder").eval()
  assert_same_text(apply_text, fresh.params["text_encoder"], loaded, tokenizer)


def test_diffusers_samples_from_our_folder_what_our_networks_predict(
  fresh, fresh_folder, apply_unet, apply_text
):
  theirs = StableDiffusionPipeline.from_pretrained(fresh_folder, vae=None)
  theirs.set_progress_bar_config(disable=True)
  noise = draw(2, 1, 8, 8)
  images = theirs(
    ["the digit seven", "one"],
    num_inference_steps=3,
    guidance_scale=2.0,
    latents=torch.from_numpy(noise),
    output_type="latent",
  ).images

  scheduler = DDIMScheduler.from_pretrained(fresh_folder, subfolder="scheduler")
  scheduler.set_timesteps(3)
  captions = ["", "", "the digit seven", "one"]
  context = apply_text(
    fresh.params["text_encoder"], interop.tokenize(fresh.tokenizers["tokenizer"], captions).ids
  ).last_hidden_state
  x = torch.from_numpy(noise)
  for t in scheduler.timesteps:
    doubled = jnp.asarray(x.permute(0, 2, 3, 1).repeat(2, 1, 1, 1))
    timesteps = np.full(4, int(t), np.int32)
    prediction = apply_unet(fresh.params["unet"], doubled, timesteps, context)
    plain, asked = np.split(np.asarray(prediction).transpose(0, 3, 1, 2), 2)
    x = scheduler.step(torch.from_numpy(plain + 2.0 * (asked - plain)), t, x).prev_sample
  np.testing.assert_allclose(images, x, atol=1e-5, rtol=1e-4)
