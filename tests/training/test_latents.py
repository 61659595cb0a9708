"""Training on latents: pipelines with a VAE, and with two text encoders, against torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import pipelines
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, sample_noise, sample_posterior_noise
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
  """(kind, trained) -> metrics of the batch."""

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
def test_the_four_errors_are_torchs_for_the_same_timesteps_and_noise(kind, settings, metrics):
  s = settings[kind]
  ours = metrics(kind, s.trained)
  shape = (8, 8, 4)
  posterior_noise = sample_posterior_noise(0, STEP, s.batch, 2, shape)
  batch = s.objective.prepare(s.batch, STEP)
  sample = sample_noise(0, STEP, batch, shape, s.objective.caption_dropout)
  assert len(set(np.asarray(sample.dropped).tolist())) == 2
  expected = [
    latents.Torch(s.folder, params).errors(s.batch, sample, posterior_noise, s.objective.null_text)
    for params in (s.trained, s.reference)
  ]
  for name, column in zip(NAMES, np.concatenate(expected, axis=1).T, strict=True):
    np.testing.assert_allclose(ours[name], column, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_at_step_zero_the_logit_vanishes_at_beta_5000(kind, settings, metrics):
  logits = metrics(kind, settings[kind].reference)["logit"]
  assert np.abs(logits).max() < 1e-3


def test_without_geometry_in_the_batch_it_is_the_size_of_the_images(settings):
  s, rows = settings["sdxl"], []

  def denoise(params, x_t, t, conditioning):
    rows.append(conditioning["time_ids"])
    return x_t

  objective = s.objective._replace(pipeline=s.objective.pipeline._replace(denoise=denoise))
  batch = s.batch._replace(geometry=None)
  run = jax.jit(lambda: (objective(s.trained, s.frozen, s.reference, batch, STEP), rows[0])[1])
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
  assert (objective.null_text is None) == zeros


@pytest.fixture(scope="module")
def noises():
  """ids [500] -> posterior noise and diffusion noise of the examples."""

  def both(ids):
    batch, shape = Batch({}, ids), (4, 4, 2)
    return (
      sample_posterior_noise(0, STEP, batch, 2, shape),
      sample_noise(0, STEP, batch, shape, 0.0).noise,
    )

  return jax.jit(both, compiler_options=QUICK)


def test_posterior_noise_does_not_depend_on_the_place_in_the_batch(noises):
  ids = np.arange(500, dtype=np.uint32)
  np.testing.assert_array_equal(noises(ids)[0], noises(ids[::-1])[0][::-1])


def test_posterior_noise_is_independent_between_images_and_of_the_diffusion_noise(noises):
  posterior, noise = (np.asarray(x) for x in noises(np.arange(500, dtype=np.uint32)))
  columns = np.stack([posterior[:, 0].ravel(), posterior[:, 1].ravel(), noise.ravel()])
  np.testing.assert_allclose(np.cov(columns), np.eye(3), atol=0.04)


def test_an_autoencoder_in_config_trained_is_refused(settings):
  config = latents.config(settings["sd"].folder)
  config.trained = ("unet", "vae")
  with pytest.raises(ValueError, match=r"trained names 'vae'.*leave it out"):
    setup.split_params(config, settings["sd"].pipeline)


def test_images_whose_size_is_no_multiple_of_the_downscale_are_refused(settings):
  s = settings["sd"]
  batch = s.batch._replace(pixels=np.zeros((6, 2, 15, 16, 3), np.float32))
  with pytest.raises(ValueError, match=r"images are 15x16.*multiples of 2"):
    jax.eval_shape(s.objective, s.trained, s.frozen, s.reference, batch, STEP)


@pytest.fixture(scope="module")
def halves():
  """Parameters and batch, and by dtype the objective and `step -> metrics` beside a gradient."""
  pipeline = setup.load_pipeline(smallest_config(), latents.CAPTIONS)
  config = latents.config("")
  config.trained = ("unet",)
  reference, frozen, _ = setup.split_params(config, pipeline)
  images = np.random.default_rng(0).uniform(-1, 1, (6, 2, 8, 8, 1)).astype(np.float32)
  text, _ = pipelines.build(pipeline).tokenize(latents.CAPTIONS)
  batch = Batch(text, np.arange(6, dtype=np.uint32), pixels=images)

  def compiled(dtype, remat="none"):
    config.dtype, config.remat = dtype, remat
    objective = setup.make_objective(config, pipeline)

    def total(trained, frozen, reference, batch, step):
      loss, metrics = objective(trained, frozen, reference, batch, step)
      return loss.mean(), metrics

    # Arguments as in a run: the compiler folds constants, which rounds in another way.
    run = jax.jit(
      jax.value_and_grad(total, has_aux=True), compiler_options={**QUICK, **EXACT_ROUNDING}
    )
    return objective, lambda step: run(reference, frozen, reference, batch, step)[0][1]

  by_dtype = {dtype: compiled(dtype) for dtype in ("float32", "bfloat16")}
  by_dtype["bfloat16 dots"] = compiled("bfloat16", "dots")
  return (reference, frozen, batch), by_dtype


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 dots"])
def test_in_bfloat16_the_logit_at_step_zero_is_below_rounding_at_beta_5000(name, halves):
  evaluate = halves[1][name][1]
  assert np.std([evaluate(np.int32(step))["logit"] for step in range(20)]) < 0.05


def test_in_bfloat16_the_errors_are_those_of_float32_rounded(halves):
  exact, rounded = (halves[1][dtype][1](STEP) for dtype in ("float32", "bfloat16"))
  for name in NAMES:
    np.testing.assert_allclose(rounded[name], exact[name], rtol=5e-3)
    assert np.abs(rounded[name] / exact[name] - 1).max() > 1e-6


def test_in_bfloat16_parameters_optimizer_state_ema_and_losses_stay_float32(halves):
  (reference, frozen, batch), by_dtype = halves
  optimizer = make_optimizer(latents.config("").optimizer)
  step = make_step(by_dtype["bfloat16"][0], optimizer, ema_decay=0.9)
  state = jax.eval_shape(lambda: initial_state(reference, optimizer, ema=True))
  after, metrics, loss = jax.eval_shape(step, state, frozen, reference, batch)
  assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
  assert {x.dtype for x in jax.tree.leaves((after.params, metrics, loss))} == {jnp.dtype("float32")}
