"""From prompts and seeds to images in batches, on one device and on several."""

import functools
from typing import NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dmpo_jax import diffusion, models, pipelines, sampling
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines.stable_diffusion import encode

SHAPE = (3, 5, 1)
SCHEDULER = {
  "_class_name": "DDIMScheduler",
  "beta_schedule": "scaled_linear",
  "clip_sample": False,
}
SOLVER = diffusion.make_solver(SCHEDULER, 4)


class Hidden(NamedTuple):
  last_hidden_state: jax.Array
  penultimate: jax.Array
  text_embeds: jax.Array


def text_encoder(params, ids, *, dtype):
  hidden = params["table"][ids].astype(dtype)  # [B, L, D]
  return Hidden(hidden, 2 * hidden, hidden[:, 0])


def unet(params, x, t, encoder_hidden_states, text_embeds=None, time_ids=None, *, dtype):
  level = params["gain"] * jnp.mean(encoder_hidden_states, axis=(1, 2))  # [B]
  if text_embeds is not None:
    level = level + jnp.mean(text_embeds, axis=1) + jnp.mean(time_ids, axis=1) / 100
  return (x * 0.1 + (level + t * 1e-4)[:, None, None, None]).astype(dtype)


TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
PARAMS = {
  "unet": {"gain": jnp.float32(0.7)},
  "text_encoder": {"table": TABLE},
  "text_encoder_2": {"table": TABLE[::-1]},
}
NETWORKS = pipelines.Networks(unet, (text_encoder,))
IDS = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [1, 8]], np.int32)
NULL = np.zeros((5, 2), np.int32)
SEEDS = np.array([4, 9, 0, 2, 4])
REQUESTS = pipelines.Requests(SEEDS, (IDS,), (NULL,))
TWO = pipelines.Requests(
  SEEDS, (IDS, IDS), (NULL, NULL), np.full((5, 6), 9, np.float32), np.full((5, 6), 4, np.float32)
)


@pytest.fixture(scope="module")
def sampler():
  return pipelines.make_sampler(NETWORKS, SOLVER, shape=SHAPE, guidance=3.0)


def _draw(sampler, batch_size, params=PARAMS, requests=REQUESTS, devices=1):
  return pipelines.sample_in_batches(
    sampler, params, requests, batch_size=batch_size, devices=jax.devices()[:devices]
  )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_every_request_is_drawn_in_its_place_whatever_the_batch_size(sampler, batch_size):
  found = _draw(sampler, batch_size)
  assert found.shape == (5, *SHAPE)
  np.testing.assert_allclose(found, _draw(sampler, 5), rtol=1e-5, atol=1e-6)


def test_an_image_is_the_solvers_on_the_guided_prediction(sampler):
  images = _draw(sampler, 5)
  x = sampling.initial_noise(SEEDS[2:3], SHAPE)
  scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER)
  scheduler.set_timesteps(4)
  for t in scheduler.timesteps:
    with_caption, without = (
      unet(PARAMS["unet"], x, jnp.array([t.item()]), TABLE[ids][None], dtype=jnp.float32)
      for ids in (IDS[2], NULL[2])
    )
    prediction = torch.from_numpy(np.array(without + 3.0 * (with_caption - without)))
    x = jnp.asarray(scheduler.step(prediction, t, torch.from_numpy(np.array(x))).prev_sample)
  np.testing.assert_allclose(images[2:3], x, rtol=1e-5, atol=1e-5)


def test_other_parameters_need_no_other_compilation(sampler):
  _draw(sampler, 5)
  before = sampler.func._cache_size()
  other = {**PARAMS, "unet": {"gain": jnp.float32(-0.7)}}
  assert not np.allclose(_draw(sampler, 5, other), _draw(sampler, 5))
  assert sampler.func._cache_size() == before


def test_progress_sees_every_batch(sampler):
  seen = []

  def watch(batches):
    for batch in batches:
      seen.append(batch)
      yield batch

  pipelines.sample_in_batches(
    sampler, PARAMS, REQUESTS, batch_size=2, devices=jax.devices()[:1], progress=watch
  )
  assert seen == [0, 2, 4]


def test_a_batch_comes_as_soon_as_it_is_drawn(sampler):
  batches = pipelines.sample_batches(
    sampler, PARAMS, REQUESTS, batch_size=2, devices=jax.devices()[:1]
  )
  np.testing.assert_allclose(next(batches), _draw(sampler, 5)[:2], rtol=1e-5, atol=1e-6)
  assert [len(batch) for batch in batches] == [2, 1]


def test_the_work_is_split_over_all_devices(sampler):
  split = jax.sharding.PartitionSpec("data")
  seen = []

  def watch(params, requests):
    images = sampler(params, requests)
    seen.append((images.sharding.spec, len(images.sharding.device_set), images.shape[0]))
    return images

  pipelines.sample_in_batches(watch, PARAMS, REQUESTS, batch_size=3)
  assert seen == [(split, 4, 4)] * 2


def _told(sampler, requests):
  """The mean of each image."""
  return _draw(sampler, 5, requests=requests).mean(axis=(1, 2, 3))


def _sampler(networks=NETWORKS, **options):
  return pipelines.make_sampler(networks, SOLVER, shape=SHAPE, **options)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(sampler):
  negative = REQUESTS._replace(null_ids=(np.full((5, 2), 3, np.int32),))
  assert not np.allclose(_told(sampler, negative), _told(sampler, REQUESTS))


def test_without_guidance_the_null_prompt_has_no_effect():
  plain = _sampler(guidance=1.0)
  negative = REQUESTS._replace(null_ids=(np.full((5, 2), 3, np.int32),))
  np.testing.assert_array_equal(_told(plain, negative), _told(plain, REQUESTS))


def test_zeros_can_stand_for_the_null_prompt():
  zeros = _sampler(guidance=3.0, zero_null=True)
  blank = {**PARAMS, "text_encoder": {"table": TABLE.at[0].set(0.0)}}
  found = _draw(zeros, 5, blank)
  np.testing.assert_allclose(found, _draw(_sampler(guidance=3.0), 5, blank), atol=1e-6)


def test_two_encoders_give_penultimate_states_side_by_side_and_the_second_ones_projection():
  told = encode((text_encoder, text_encoder), PARAMS, (IDS, IDS), dtype=jnp.float32)
  pair = np.concatenate([2 * TABLE[IDS], 2 * TABLE[::-1][IDS]], axis=-1)
  np.testing.assert_allclose(told["encoder_hidden_states"], pair)
  np.testing.assert_allclose(told["text_embeds"], TABLE[::-1][IDS][:, 0])


def test_one_encoder_gives_its_last_hidden_state():
  told = encode((text_encoder,), PARAMS, (IDS,), dtype=jnp.float32)
  assert told.keys() == {"encoder_hidden_states"}
  np.testing.assert_allclose(told["encoder_hidden_states"], TABLE[IDS])


def test_sizes_may_differ_beside_the_negative_prompt():
  sampler = _sampler(pipelines.Networks(unet, (text_encoder, text_encoder)), guidance=3.0)
  alike = TWO._replace(null_time_ids=TWO.time_ids)
  assert not np.allclose(_told(sampler, TWO), _told(sampler, alike))


def test_the_network_computes_in_the_dtype_asked_for_and_images_are_float32():
  coarse = _draw(_sampler(guidance=3.0, dtype=jnp.bfloat16), 5)
  fine = _draw(_sampler(guidance=3.0), 5)
  assert coarse.dtype == np.float32
  assert 0 < np.abs(coarse - fine).max() < 0.1


def test_latents_are_decoded():
  def decode(params, z):
    return params["factor"] * jnp.repeat(z, 2, axis=1)

  params = {**PARAMS, "vae": {"factor": jnp.float32(3)}}
  found = _draw(_sampler(NETWORKS._replace(decode=decode), guidance=3.0), 5, params)
  expected = 3 * np.repeat(_draw(_sampler(guidance=3.0), 5), 2, axis=1)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sizes_are_height_and_width_of_the_image_unless_they_are_given():
  np.testing.assert_array_equal(pipelines.size_ids((64, 32)), [64, 32, 0, 0, 64, 32])
  given = pipelines.size_ids((64, 32), original=(9, 8), crop=(1, 2), target=(7, 6))
  np.testing.assert_array_equal(given, [9, 8, 1, 2, 7, 6])


def test_seeds_out_of_range_are_refused(sampler):
  with pytest.raises(InputError, match="from -1 to 9"):
    _draw(sampler, 5, requests=REQUESTS._replace(seeds=np.array([4, 9, 0, 2, -1])))


# --- the same seed, the same image, with real networks ---

UNET = {
  "_class_name": "UNet2DConditionModel",
  "sample_size": 4,
  "in_channels": 4,
  "out_channels": 4,
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
  "block_out_channels": (16,),
  "layers_per_block": 1,
  "cross_attention_dim": 16,
  "attention_head_dim": 2,
  "norm_num_groups": 4,
}
TEXT = {
  "architectures": ("CLIPTextModel",),
  "vocab_size": 9,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 4,
  "bos_token_id": 7,
  "eos_token_id": 8,
}
VAE = {
  "_class_name": "AutoencoderKL",
  "down_block_types": ("DownEncoderBlock2D",),
  "up_block_types": ("UpDecoderBlock2D",),
  "block_out_channels": (8,),
  "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def real():
  """Five images, as a function of batch size and number of devices."""
  autoencoder = models.build_autoencoder(VAE)
  networks = pipelines.Networks(
    models.build(UNET).apply, (models.build(TEXT).apply,), decode=autoencoder.decode
  )
  key = jax.random.key(0)
  params = {
    "unet": models.build(UNET).init(key),
    "text_encoder": models.build(TEXT).init(key),
    "vae": autoencoder.init(key),
  }
  sampler = pipelines.make_sampler(networks, SOLVER, shape=(4, 4, 4), guidance=3.0)
  ids = np.random.default_rng(0).integers(0, 9, (2, 5, 4)).astype(np.int32)
  requests = pipelines.Requests(SEEDS, (ids[0],), (ids[1],))

  @functools.cache
  def draw(batch_size, devices):
    return _draw(sampler, batch_size, params, requests, devices)

  return draw


@pytest.mark.parametrize(("batch_size", "devices"), [(2, 1), (3, 1), (1, 4), (3, 4)])
def test_the_same_seed_gives_the_same_image_whatever_batch_size_and_device_count(
  real, batch_size, devices
):
  expected, found = real(1, 1), real(batch_size, devices)
  assert np.ptp(expected) > 0.1
  # Bit-identical on the CPUs that were tried; XLA may choose other kernels for other batch sizes.
  np.testing.assert_allclose(found, expected, atol=1e-5)
  levels = np.stack([np.asarray(sampling.to_uint8(x)).astype(int) for x in (found, expected)])
  assert np.abs(levels[0] - levels[1]).max() <= 1
