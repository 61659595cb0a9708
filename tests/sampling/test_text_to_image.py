"""From captions and seeds to images in batches."""

from typing import NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dmpo_jax import diffusion, sampling

SHAPE = (3, 5, 1)
SCHEDULER = {
  "_class_name": "DDIMScheduler",
  "beta_schedule": "scaled_linear",
  "clip_sample": False,
}
SOLVER = diffusion.make_solver(SCHEDULER, 4)


class Hidden(NamedTuple):
  last_hidden_state: jax.Array


def text_encoder(params, ids):
  return Hidden(params["table"][ids])  # [B, L, D]


def unet(params, x, t, context):
  level = params["gain"] * jnp.mean(context, axis=(1, 2))
  return x * 0.1 + (level + t * 1e-4)[:, None, None, None]


PARAMS = {
  "unet": {"gain": jnp.float32(0.7)},
  "text_encoder": {"table": jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)},
}
IDS = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [1, 8]], np.int32)
NULL = np.array([0, 0], np.int32)
SEEDS = np.array([4, 9, 0, 2, 4])


@pytest.fixture(scope="module")
def sampler():
  return sampling.make_sampler(unet, text_encoder, SOLVER, shape=SHAPE, guidance=3.0)


def _draw(sampler, batch_size, params=PARAMS):
  return sampling.sample_in_batches(sampler, params, IDS, NULL, SEEDS, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_changes_no_image(sampler, batch_size):
  found = _draw(sampler, batch_size)
  assert found.shape == (5, *SHAPE)
  np.testing.assert_allclose(found, _draw(sampler, 5), rtol=1e-5, atol=1e-6)


def test_an_image_is_the_solvers_on_the_guided_prediction(sampler):
  images = _draw(sampler, 5)
  x = sampling.initial_noise(SEEDS[2:3], SHAPE)
  hidden = PARAMS["text_encoder"]["table"]
  scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER)
  scheduler.set_timesteps(4)
  for t in scheduler.timesteps:
    with_caption, without = (
      unet(PARAMS["unet"], x, jnp.array([t.item()]), hidden[ids][None]) for ids in (IDS[2], NULL)
    )
    prediction = torch.from_numpy(np.array(without + 3.0 * (with_caption - without)))
    x = jnp.asarray(scheduler.step(prediction, t, torch.from_numpy(np.array(x))).prev_sample)
  np.testing.assert_allclose(images[2:3], x, rtol=1e-5, atol=1e-5)


def test_other_parameters_need_no_other_compilation(sampler):
  _draw(sampler, 5)
  before = sampler._cache_size()
  other = {**PARAMS, "unet": {"gain": jnp.float32(-0.7)}}
  assert not np.allclose(_draw(sampler, 5, other), _draw(sampler, 5))
  assert sampler._cache_size() == before


def test_progress_sees_every_batch(sampler):
  seen = []

  def watch(batches):
    for batch in batches:
      seen.append(batch)
      yield batch

  sampling.sample_in_batches(sampler, PARAMS, IDS, NULL, SEEDS, batch_size=2, progress=watch)
  assert seen == [0, 2, 4]
