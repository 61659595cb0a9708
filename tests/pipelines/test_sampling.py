"""From prompts and seeds to images in batches, on one device and on several."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dmpo_jax import diffusion, interop, models, pipelines, sampling
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines.stable_diffusion import join_encodings

SHAPE = (3, 5, 1)
SCHEDULER = {
  "_class_name": "DDIMScheduler",
  "beta_schedule": "scaled_linear",
  "clip_sample": False,
}
SOLVER = diffusion.make_solver(SCHEDULER, 4)
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
PARAMS = {
  "unet": {"gain": jnp.float32(0.7)},
  "text_encoder": {"table": TABLE},
  "text_encoder_2": {"table": TABLE[::-1]},
}


def text_output(params, ids):
  hidden = params["table"][ids]  # [B, L, D]
  return models.TextOutput(
    hidden, penultimate=2 * hidden, pooled=hidden[:, 0], text_embeds=hidden[:, 0]
  )


def unet(params, x, t, encoder_hidden_states, text_embeds=None, time_ids=None):
  level = params["gain"] * jnp.mean(encoder_hidden_states, axis=(1, 2))  # [B]
  if text_embeds is not None:
    level = level + jnp.mean(text_embeds, axis=1) + jnp.mean(time_ids, axis=1) / 100
  return x * 0.1 + (level + t * 1e-4)[:, None, None, None]


def make_pipeline(encoders=("text_encoder",), **fields):
  """A pipeline of 3x5 gray pixels, with or without geometry as it has two text encoders or one."""

  def encode_text(params, text):
    outputs = zip(encoders, text.values(), strict=True)
    return join_encodings([text_output(params[name], ids) for name, ids in outputs])

  def condition(text, geometry, source):
    return text if geometry is None else {**text, "time_ids": geometry}

  defaults = {
    "components": tuple(PARAMS),
    "denoiser": "unet",
    "text_encoders": encoders,
    "autoencoder": None,
    "process": diffusion.from_config(SCHEDULER),
    "image_channels": 1,
    "text_shapes": {},
    "uses_geometry": len(encoders) == 2,
    "zero_null_text": False,
    "default_guidance": 3.0,
    "default_size": lambda: SHAPE[:2],
    "lora_targets": {},
    "tokenize": None,
    "encode_text": encode_text,
    "condition": condition,
    "denoise": lambda params, x, t, text: unet(params["unet"], x, t, **text),
    "posterior": None,
    "scale": lambda x: x,
    "decode": lambda params, x: x,
    "sample_shape": lambda size: (*size, SHAPE[2]),
    "make_solver": None,
    "solver_settings": None,
    "flops": None,
  }
  return pipelines.TextToImage(**{**defaults, **fields})


PIPELINE = make_pipeline()
IDS = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [1, 8]], np.int32)
NULL = np.zeros((5, 2), np.int32)
NEGATIVE = {"input_ids": np.full((5, 2), 3, np.int32)}
SEEDS = np.array([4, 9, 0, 2, 4])
INPUTS = pipelines.SamplingInputs(SEEDS, {"input_ids": IDS}, {"input_ids": NULL})
TWO = pipelines.SamplingInputs(
  SEEDS,
  {"input_ids": IDS, "input_ids_2": IDS},
  {"input_ids": NULL, "input_ids_2": NULL},
  np.full((5, 6), 9, np.float32),
)


@pytest.fixture(scope="module")
def sampler():
  return _sampler(guidance=3.0)


def _sampler(pipeline=PIPELINE, **options):
  return pipelines.make_sampler(pipeline, SOLVER, **options)


def _sample(sampler, batch_size, params=PARAMS, inputs=INPUTS, devices=1):
  return pipelines.sample_all(
    sampler, params, inputs, batch_size=batch_size, devices=jax.devices()[:devices]
  )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_images_are_in_the_order_of_the_inputs_at_every_batch_size(sampler, batch_size):
  images = _sample(sampler, batch_size)
  assert images.shape == (5, *SHAPE)
  np.testing.assert_allclose(images, _sample(sampler, 5), rtol=1e-5, atol=1e-6)


def test_an_image_is_the_solvers_for_the_guided_prediction(sampler):
  images = _sample(sampler, 5)
  x = sampling.initial_noise(SEEDS[2:3], SHAPE)
  scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER)
  scheduler.set_timesteps(4)
  for t in scheduler.timesteps:
    with_caption, without = (
      unet(PARAMS["unet"], x, jnp.array([t.item()]), TABLE[ids][None]) for ids in (IDS[2], NULL[2])
    )
    prediction = torch.from_numpy(np.array(without + 3.0 * (with_caption - without)))
    x = jnp.asarray(scheduler.step(prediction, t, torch.from_numpy(np.array(x))).prev_sample)
  np.testing.assert_allclose(images[2:3], x, rtol=1e-5, atol=1e-5)


def test_other_parameters_share_the_compilation(sampler):
  _sample(sampler, 5)
  before = sampler.func._cache_size()
  other = {**PARAMS, "unet": {"gain": jnp.float32(-0.7)}}
  assert not np.allclose(_sample(sampler, 5, other), _sample(sampler, 5))
  assert sampler.func._cache_size() == before


def test_progress_wraps_the_batches(sampler):
  starts = []

  def progress(batches):
    for start in batches:
      starts.append(start)
      yield start

  pipelines.sample_all(
    sampler, PARAMS, INPUTS, batch_size=2, devices=jax.devices()[:1], progress=progress
  )
  assert starts == [0, 2, 4]


def test_batches_are_yielded_one_by_one(sampler):
  batches = pipelines.sample_batches(
    sampler, PARAMS, INPUTS, batch_size=2, devices=jax.devices()[:1]
  )
  np.testing.assert_allclose(next(batches), _sample(sampler, 5)[:2], rtol=1e-5, atol=1e-6)
  assert [len(batch) for batch in batches] == [2, 1]


def test_batches_are_sharded_over_all_devices(sampler):
  sharded = jax.sharding.PartitionSpec("data")
  shardings = []

  def record(params, inputs):
    images = sampler(params, inputs)
    shardings.append((images.sharding.spec, len(images.sharding.device_set), images.shape[0]))
    return images

  pipelines.sample_all(record, PARAMS, INPUTS, batch_size=3)
  assert shardings == [(sharded, 4, 4)] * 2


def _means(sampler, inputs):
  """Mean of each image."""
  return _sample(sampler, 5, inputs=inputs).mean(axis=(1, 2, 3))


def test_a_negative_prompt_replaces_the_empty_one(sampler):
  negative = INPUTS._replace(negative_text=NEGATIVE)
  assert not np.allclose(_means(sampler, negative), _means(sampler, INPUTS))


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_without_guidance_the_negative_prompt_has_no_effect(guidance):
  sampler = _sampler(guidance=guidance)
  negative = INPUTS._replace(negative_text=NEGATIVE)
  np.testing.assert_array_equal(_means(sampler, negative), _means(sampler, INPUTS))


def test_pipelines_with_zero_null_text_condition_on_zeros_for_the_empty_prompt():
  zeros = _sampler(make_pipeline(zero_null_text=True), guidance=3.0)
  blank = {**PARAMS, "text_encoder": {"table": TABLE.at[0].set(0.0)}}
  images = _sample(zeros, 5, blank)
  np.testing.assert_allclose(images, _sample(_sampler(guidance=3.0), 5, blank), atol=1e-6)


def test_pipelines_with_zero_null_text_encode_a_negative_prompt(sampler):
  zeros = _sampler(make_pipeline(zero_null_text=True), guidance=3.0, negative=True)
  negative = INPUTS._replace(negative_text=NEGATIVE)
  np.testing.assert_allclose(_means(zeros, negative), _means(sampler, negative), atol=1e-6)


def test_two_encoders_give_penultimate_states_side_by_side_and_the_second_ones_projection():
  outputs = [text_output(PARAMS[name], IDS) for name in ("text_encoder", "text_encoder_2")]
  conditioning = join_encodings(outputs)
  pair = np.concatenate([2 * TABLE[IDS], 2 * TABLE[::-1][IDS]], axis=-1)
  np.testing.assert_allclose(conditioning["encoder_hidden_states"], pair)
  np.testing.assert_allclose(conditioning["text_embeds"], TABLE[::-1][IDS][:, 0])


def test_one_encoder_gives_its_last_hidden_state():
  conditioning = join_encodings([text_output(PARAMS["text_encoder"], IDS)])
  assert conditioning.keys() == {"encoder_hidden_states"}
  np.testing.assert_allclose(conditioning["encoder_hidden_states"], TABLE[IDS])


def test_the_denoiser_is_conditioned_on_the_geometry():
  sampler = _sampler(make_pipeline(("text_encoder", "text_encoder_2")), guidance=3.0)
  other = TWO._replace(geometry=np.full((5, 6), 4, np.float32))
  assert not np.allclose(_means(sampler, TWO), _means(sampler, other))


def test_a_denoiser_in_bfloat16_gives_float32_images():
  def denoise(params, x, t, text):
    return PIPELINE.denoise(params, x, t, text).astype(jnp.bfloat16)

  coarse = _sample(_sampler(make_pipeline(denoise=denoise), guidance=3.0), 5)
  fine = _sample(_sampler(guidance=3.0), 5)
  assert coarse.dtype == np.float32
  assert 0 < np.abs(coarse - fine).max() < 0.1


def test_latents_are_decoded():
  def decode(params, x0):
    return params["vae"]["factor"] * jnp.repeat(x0, 2, axis=1)

  params = {**PARAMS, "vae": {"factor": jnp.float32(3)}}
  images = _sample(_sampler(make_pipeline(decode=decode), guidance=3.0), 5, params)
  expected = 3 * np.repeat(_sample(_sampler(guidance=3.0), 5), 2, axis=1)
  np.testing.assert_allclose(images, expected, rtol=1e-6)


def test_original_and_target_size_are_by_default_the_images():
  np.testing.assert_array_equal(pipelines.geometry((64, 32)), [64, 32, 0, 0, 64, 32])
  row = pipelines.geometry((64, 32), original=(9, 8), crop=(1, 2), target=(7, 6))
  np.testing.assert_array_equal(row, [9, 8, 1, 2, 7, 6])


def test_seeds_out_of_range_are_refused(sampler):
  with pytest.raises(InputError, match="from -1 to 9"):
    _sample(sampler, 5, inputs=INPUTS._replace(seeds=np.array([4, 9, 0, 2, -1])))


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
def sample_real():
  """(batch size, number of devices) -> five images of a pipeline with real networks."""
  configs = {"unet": UNET, "text_encoder": TEXT, "vae": VAE, "scheduler": SCHEDULER}
  pipeline = pipelines.build(interop.Pipeline({}, configs, {}, None))
  key = jax.random.key(0)
  params = {
    "unet": models.build(UNET).init(key),
    "text_encoder": models.build(TEXT).init(key),
    "vae": models.build_autoencoder(VAE).init(key),
  }
  sampler = _sampler(pipeline, guidance=3.0)
  ids = np.random.default_rng(0).integers(0, 9, (2, 5, 4)).astype(np.int32)
  inputs = pipelines.SamplingInputs(SEEDS, {"input_ids": ids[0]}, {"input_ids": ids[1]})

  @functools.cache
  def sample(batch_size, devices):
    return _sample(sampler, batch_size, params, inputs, devices)

  return sample


@pytest.mark.parametrize(("batch_size", "devices"), [(2, 1), (3, 1), (1, 4), (3, 4)])
def test_a_seed_gives_one_image_at_every_batch_size_and_device_count(
  sample_real, batch_size, devices
):
  expected, images = sample_real(1, 1), sample_real(batch_size, devices)
  assert np.ptp(expected) > 0.1
  # Bit-identical on the CPUs that were tried; XLA may choose other kernels for other batch sizes.
  np.testing.assert_allclose(images, expected, atol=1e-5)
  levels = np.stack([np.asarray(sampling.to_uint8(x)).astype(int) for x in (images, expected)])
  assert np.abs(levels[0] - levels[1]).max() <= 1
