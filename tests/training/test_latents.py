"""Training on latents: pipelines with a VAE, and with two text encoders, against torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax.pipelines import stable_diffusion
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, draw, draw_encodings
from dmpo_jax.training.objective import EXACT_ROUNDING
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import initial_state, make_step
from tests.training import latents
from tests.training.tiny import smallest_config

STEP = np.int32(4)
# Compiled in half the time; it runs only a few steps.
QUICK = {"xla_backend_optimization_level": 0}
NAMES = ("policy_w", "policy_l", "reference_w", "reference_l")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  """A `latents.Setting` for each kind of pipeline."""
  folder = tmp_path_factory.mktemp("latents")
  return {kind: latents.setting(kind, folder / kind) for kind in ("sd", "sdxl")}


@pytest.fixture(scope="module")
def metrics(settings):
  """(kind, trained) -> what the objective finds on the batch."""

  def compiled(s):
    run = lambda trained, frozen, reference, batch: s.objective(  # noqa: E731
      trained, frozen, reference, batch, STEP
    )[1]
    return jax.jit(run, compiler_options=QUICK)

  runs = {kind: compiled(s) for kind, s in settings.items()}

  def run(kind, trained):
    s = settings[kind]
    return runs[kind](trained, s.frozen, s.reference, s.batch)

  return run


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_four_errors_are_torchs_with_the_same_draws(kind, settings, metrics):
  s = settings[kind]
  found = metrics(kind, s.trained)
  encodings = draw_encodings(0, STEP, s.batch, (8, 8, 4))
  latent = s.objective.prepare(s.batch._replace(images=encodings), STEP)
  draws = draw(0, STEP, latent, s.objective.caption_dropout)
  assert len(set(np.asarray(draws.dropped).tolist())) == 2
  wanted = [
    latents.Torch(s.folder, params).errors(s.batch, draws, encodings, s.objective.null_ids)
    for params in (s.trained, s.reference)
  ]
  for name, column in zip(NAMES, np.concatenate(wanted, axis=1).T, strict=True):
    np.testing.assert_allclose(found[name], column, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_at_step_zero_the_logit_vanishes_at_beta_5000(kind, settings, metrics):
  found = metrics(kind, settings[kind].reference)
  assert np.abs(found["logit"]).max() < 1e-3


def test_sizes_that_are_not_given_are_those_of_the_images(settings):
  s, seen = settings["sdxl"], []

  def unet(params, noisy, timesteps, context, *, text_embeds, time_ids):
    seen.append(time_ids)
    return noisy

  objective = s.objective._replace(networks=s.objective.networks._replace(unet=unet))
  batch = s.batch._replace(time_ids=None)
  run = jax.jit(lambda: (objective(s.trained, s.frozen, s.reference, batch, STEP), seen[0])[1])
  np.testing.assert_array_equal(run(), np.tile([[16, 16, 0, 0, 16, 16]], (12, 1)))


@pytest.mark.parametrize(("forced", "zeros"), [(None, True), (True, True), (False, False)])
def test_dropped_captions_of_sdxl_are_zeros_unless_its_index_says_otherwise(
  forced, zeros, settings
):
  s = settings["sdxl"]
  index = {**s.pipeline.model_index, "force_zeros_for_empty_prompt": forced}
  if forced is None:
    del index["force_zeros_for_empty_prompt"]
  pipeline = dataclasses.replace(s.pipeline, model_index=index)
  objective = setup.make_objective(latents.config(s.folder), pipeline)
  assert (objective.null_ids is None) == zeros


@pytest.fixture(scope="module")
def noises():
  """ids [500] -> the noise of their latents, and that of the diffusion."""

  def both(ids):
    batch = Batch(jnp.zeros((500, 2, 4, 4, 2)), jnp.zeros((500, 8), jnp.int32), ids)
    return draw_encodings(0, STEP, batch, (4, 4, 2)), draw(0, STEP, batch, 0.0).noise

  return jax.jit(both, compiler_options=QUICK)


def test_the_noise_of_latents_follows_the_example_wherever_it_stands_in_the_batch(noises):
  ids = np.arange(500, dtype=np.uint32)
  np.testing.assert_array_equal(noises(ids)[0], noises(ids[::-1])[0][::-1])


def test_the_noise_of_latents_is_each_images_own_and_not_the_diffusions(noises):
  found, noise = (np.asarray(x) for x in noises(np.arange(500, dtype=np.uint32)))
  columns = np.stack([found[:, 0].ravel(), found[:, 1].ravel(), noise.ravel()])
  np.testing.assert_allclose(np.cov(columns), np.eye(3), atol=0.04)


def test_a_vae_that_is_to_be_trained_is_refused(settings):
  config = latents.config(settings["sd"].folder)
  config.trained = ("unet", "vae")
  with pytest.raises(ValueError, match=r"trained names 'vae'.*leave it out"):
    setup.split_params(config, settings["sd"].pipeline)


def test_images_that_are_no_whole_number_of_latents_are_refused(settings):
  s = settings["sd"]
  batch = s.batch._replace(images=np.zeros((6, 2, 15, 16, 3), np.float32))
  with pytest.raises(ValueError, match=r"images are 15x16.*multiples of 2"):
    jax.eval_shape(s.objective, s.trained, s.frozen, s.reference, batch, STEP)


@pytest.fixture(scope="module")
def halves():
  """What an objective is given, and in each dtype what it finds beside a gradient at a step."""
  pipeline = setup.load_pipeline(smallest_config(), latents.CAPTIONS)
  config = latents.config("")
  config.trained = ("unet",)
  reference, frozen, _ = setup.split_params(config, pipeline)
  images = np.random.default_rng(0).uniform(-1, 1, (6, 2, 8, 8, 1)).astype(np.float32)
  tokens, _ = stable_diffusion.tokenize(pipeline, latents.CAPTIONS)
  batch = Batch(images, example_id=np.arange(6, dtype=np.uint32), **tokens)

  def compiled(dtype, remat="none"):
    config.dtype, config.remat = dtype, remat
    objective = setup.make_objective(config, pipeline)

    def total(trained, frozen, reference, batch, step):
      loss, found = objective(trained, frozen, reference, batch, step)
      return loss.mean(), found

    # All of them arguments, as in a run: constants are computed with in another way.
    run = jax.jit(
      jax.value_and_grad(total, has_aux=True), compiler_options={**QUICK, **EXACT_ROUNDING}
    )
    return objective, lambda step: run(reference, frozen, reference, batch, step)[0][1]

  found = {dtype: compiled(dtype) for dtype in ("float32", "bfloat16")}
  found["bfloat16 dots"] = compiled("bfloat16", "dots")
  return (reference, frozen, batch), found


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 dots"])
def test_in_bfloat16_the_logit_at_step_zero_is_below_rounding_at_beta_5000(name, halves):
  evaluate = halves[1][name][1]
  assert np.std([evaluate(np.int32(step))["logit"] for step in range(20)]) < 0.05


def test_in_bfloat16_the_errors_are_those_of_float32_rounded(halves):
  wanted, found = (halves[1][dtype][1](STEP) for dtype in ("float32", "bfloat16"))
  for name in NAMES:
    np.testing.assert_allclose(found[name], wanted[name], rtol=5e-3)
    assert np.abs(found[name] / wanted[name] - 1).max() > 1e-6


def test_in_bfloat16_parameters_optimizer_average_and_losses_stay_float32(halves):
  (reference, frozen, batch), found = halves
  optimizer = make_optimizer(latents.config("").optimizer)
  step = make_step(found["bfloat16"][0], optimizer, ema_decay=0.9)
  state = jax.eval_shape(lambda: initial_state(reference, optimizer, ema=True))
  after, found, loss = jax.eval_shape(step, state, frozen, reference, batch)
  assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
  assert {x.dtype for x in jax.tree.leaves((after.params, found, loss))} == {jnp.dtype("float32")}
