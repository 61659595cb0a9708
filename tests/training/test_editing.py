"""Training of editing pipelines: conditioning on sources, dropout, widening, and bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import (
  StableDiffusionInstructPix2PixPipeline,
  StableDiffusionXLInstructPix2PixPipeline,
)
from ml_collections import ConfigDict

from dmpo_jax import interop, pipelines
from dmpo_jax.data.latents import cache
from dmpo_jax.data.latents.options import Options
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import latent_encoders
from dmpo_jax.pipelines.fingerprints import params_digest
from dmpo_jax.training import config as configs
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, EditDropout, sample_noise, sample_posterior_noise
from dmpo_jax.training.objective import clean_source
from dmpo_jax.training.run import train
from tests.data import sets
from tests.data import test_folder_pairs as folder_pairs
from tests.interop import tiny
from tests.training import latents
from tests.training.tiny import smallest_config

STEP = np.int32(4)
QUICK = {"xla_backend_optimization_level": 0}
NAMES = ("policy_w", "policy_l", "reference_w", "reference_l")


def editing_config(folder) -> ConfigDict:
  config = latents.config(folder)
  config.caption_dropout = 0.0
  config.editing.caption_dropout, config.editing.source_dropout = 0.3, 0.3
  config.editing.both_dropout = 0.2
  return config


def sources(seed: int = 3) -> np.ndarray:
  return np.random.default_rng(seed).uniform(-1, 1, (6, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
  """A tiny StableDiffusionPipeline of one block."""
  folder = tmp_path_factory.mktemp("text") / "sd"
  latents.write("sd", folder)
  return folder


@pytest.fixture(scope="module")
def edit_folder(tmp_path_factory):
  """The same with a random UNet that reads sources too."""
  folder = tmp_path_factory.mktemp("edit") / "sd"
  latents.write("sd", folder)
  tiny.make_unet(**{**tiny.LATENTS, "in_channels": 8}, **latents.SMALL).save_pretrained(
    folder / "unet"
  )
  index = json.loads((folder / "model_index.json").read_text())
  index["_class_name"] = "StableDiffusionInstructPix2PixPipeline"
  (folder / "model_index.json").write_text(json.dumps(index))
  return folder


def batch_of(pipeline, **changes) -> Batch:
  text, _ = pipelines.build(pipeline).tokenize(latents.CAPTIONS)
  pairs = latents.examples()
  return Batch(text, pairs.ids, pixels=pairs.images, source=sources())._replace(**changes)


def test_the_four_errors_are_torchs_with_captions_and_sources_dropped(edit_folder):
  config = editing_config(edit_folder)
  pipeline = setup.load_pipeline(config, [])
  reference, frozen, _ = setup.split_params(config, pipeline)
  rng = np.random.default_rng(1)
  trained = jax.tree.map(
    lambda x: x + 0.01 * rng.normal(size=x.shape).astype(np.float32), reference
  )
  objective, batch = setup.make_objective(config, pipeline), batch_of(pipeline)
  run = jax.jit(lambda *trees: objective(*trees, STEP)[1], compiler_options=QUICK)
  ours = run(trained, frozen, reference, batch)
  shape = (8, 8, 4)
  posterior_noise = sample_posterior_noise(0, STEP, batch, 2, shape)
  sample = sample_noise(0, STEP, objective.prepare(batch, STEP), shape, objective.edit_dropout)
  dropped = set(zip(np.asarray(sample.dropped), np.asarray(sample.source_dropped), strict=True))
  assert len(dropped) > 2
  expected = [
    latents.Torch(edit_folder, p).errors(batch, sample, posterior_noise, objective.null_text)
    for p in (trained, reference)
  ]
  for name, column in zip(NAMES, np.concatenate(expected, axis=1).T, strict=True):
    np.testing.assert_allclose(ours[name], column, rtol=1e-4)


def test_cached_source_latents_need_no_autoencoder(edit_folder):
  pipeline = setup.load_pipeline(editing_config(edit_folder), [])
  cached = np.random.default_rng(0).normal(size=(6, 8, 8, 4)).astype(np.float16)
  batch = batch_of(pipeline, source=None, source_latents=cached)
  source = clean_source(pipelines.build(pipeline), {}, batch)
  assert source.dtype == jnp.float32
  np.testing.assert_array_equal(source, cached)


def test_captions_and_sources_are_dropped_with_their_own_probabilities_and_together():
  count, dropout = 20_000, EditDropout(caption=0.1, source=0.2, both=0.05)
  batch = Batch({}, np.arange(count, dtype=np.uint32), timesteps=np.zeros(count, np.int32))
  sample = jax.jit(lambda: sample_noise(0, STEP, batch, (1, 1, 1), dropout))()
  caption, source = (np.asarray(x) for x in (sample.dropped, sample.source_dropped))
  for rate, expected in (
    ((caption & ~source).mean(), 0.1),
    ((source & ~caption).mean(), 0.2),
    ((caption & source).mean(), 0.05),
  ):
    assert abs(rate - expected) < 4 * (expected / count) ** 0.5


def test_dropout_depends_on_seed_step_and_example_alone():
  ids = np.arange(64, dtype=np.uint32)
  batch = Batch({}, ids, timesteps=np.zeros(64, np.int32))
  whole = sample_noise(1, STEP, batch, (1, 1, 1), EditDropout(0.3, 0.3, 0.3))
  part = Batch({}, ids[::-4], timesteps=np.zeros(16, np.int32))
  part = sample_noise(1, STEP, part, (1, 1, 1), EditDropout(0.3, 0.3, 0.3))
  np.testing.assert_array_equal(part.source_dropped, whole.source_dropped[::-4])
  np.testing.assert_array_equal(part.dropped, whole.dropped[::-4])


@pytest.mark.parametrize("kind", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_widened_network_predicts_what_the_old_one_does_to_the_bit(kind, tmp_path):
  latents.write(kind, tmp_path / kind)
  narrow = pipelines.load(str(tmp_path / kind))
  wide = pipelines.widen(narrow)
  assert narrow.params["unet"]["conv_in"]["kernel"].shape[2] == 4
  assert wide.params["unet"]["conv_in"]["kernel"].shape[2] == 8
  rng = np.random.default_rng(0)
  x, source = (rng.normal(size=(3, 8, 8, 4)).astype(np.float32) for _ in range(2))
  tokens, _ = pipelines.build(narrow).tokenize(latents.CAPTIONS[:3])
  geometry = np.ones((3, 6), np.float32)

  def predict(pipeline, source):
    functions = pipelines.build(pipeline)

    def run(params, x, tokens, source):
      text = functions.condition(functions.encode_text(params, tokens), geometry, source)
      return functions.denoise(params, x, jnp.array([3, 500, 900]), text)

    return jax.jit(run, compiler_options=QUICK)(pipeline.params, x, tokens, source)

  np.testing.assert_array_equal(predict(wide, source), predict(narrow, None))
  saved = tmp_path / "wide"
  pipelines.save(saved, wide)
  kinds = {
    "sd": StableDiffusionInstructPix2PixPipeline,
    "sdxl": StableDiffusionXLInstructPix2PixPipeline,
  }
  loaded = kinds[kind].from_pretrained(saved)
  assert loaded.unet.config.in_channels == 8
  assert params_digest(pipelines.load(str(saved)).params) == params_digest(wide.params)


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
  """A converted folder of six edits of 8x8 pixels."""
  rows = [
    {
      "prompt": f"digit {i}",
      "label_0": [1, 0][i % 2],
      **{name: sets.encoded(3 * i + j, size=(8, 8)) for j, name in enumerate(IMAGES)},
    }
    for i in range(6)
  ]
  return folder_pairs.write_custom(tmp_path_factory.mktemp("edits"), rows)


IMAGES = ("image_0", "image_1", "condition")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
  """A new text-to-image pipeline on grey pixels, as a folder."""
  folder = tmp_path_factory.mktemp("pixels") / "pipeline"
  model = smallest_config().model.to_dict()
  pipelines.save(folder, pipelines.create(model, ["digit 0 1 2 3 4 5"], 0))
  return folder


def pixel_config(pipeline, edits, **data_options) -> ConfigDict:
  config = latents.config(pipeline)
  config.caption_dropout, config.trained = 0.0, ("unet",)
  config.data = ConfigDict({"name": "pairs", "folder": edits, "size": 8, "flip": True})
  config.data.update(data_options)
  config.loss = ConfigDict({"name": "dmpo", "alpha": 0.1, "beta": 10.0})
  return config


@pytest.fixture(scope="module")
def widened_run(pixels, edits, tmp_path_factory):
  config = pixel_config(pixels, edits)
  config.widen = True
  workdir = tmp_path_factory.mktemp("widened")
  return config, train(config, workdir, show_progress=False)


def test_a_run_from_a_widened_pipeline_learns_to_read_the_source(widened_run, pixels):
  _, result = widened_run
  written = pipelines.load(str(result.pipeline))
  assert written.model_index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
  kernel = written.params["unet"]["conv_in"]["kernel"]
  before = pipelines.load(str(pixels)).params["unet"]["conv_in"]["kernel"]
  assert kernel.shape[2] == 2 * before.shape[2] == 2
  assert np.abs(kernel[:, :, 1]).max() > 0


@pytest.mark.slow
def test_a_lora_of_an_editing_pipeline_trains(widened_run, edits, tmp_path):
  config = pixel_config(widened_run[1].pipeline, edits)
  config.lora.rank, config.lora.alpha = 2, 2.0
  result = train(config, tmp_path / "lora", show_progress=False)
  written = pipelines.load(str(result.pipeline))
  before = pipelines.load(str(widened_run[1].pipeline))
  assert interop.EDITING["StableDiffusionPipeline"] == written.model_index["_class_name"]
  assert params_digest(written.params["unet"]) != params_digest(before.params["unet"])


def test_pairs_without_sources_do_not_train_an_editing_pipeline(edits, pixels, tmp_path):
  config = pixel_config(pixels, edits, drop_sources=True)
  config.widen = True
  with pytest.raises(InputError, match=r"config\.data have no source images"):
    train(config, tmp_path / "run", show_progress=False)


def test_edits_do_not_train_a_text_to_image_pipeline(edits, pixels, tmp_path):
  with pytest.raises(InputError, match=r"make one with config\.widen=True"):
    train(pixel_config(pixels, edits), tmp_path / "run", show_progress=False)


def test_sample_grids_of_a_run_need_no_sources_and_are_refused_for_edits(edits, pixels, tmp_path):
  config = pixel_config(pixels, edits)
  config.widen, config.samples.every, config.samples.prompts = True, 1, ("digit",)
  with pytest.raises(InputError, match=r"set samples\.every and evaluation\.every to 0"):
    train(config, tmp_path / "run", show_progress=False)


def test_caption_dropout_of_an_editing_pipeline_is_in_its_own_section(edit_folder):
  config = editing_config(edit_folder)
  config.caption_dropout = 0.1
  with pytest.raises(InputError, match=r"set config\.editing\.caption_dropout"):
    setup.make_objective(config, setup.load_pipeline(config, []))


def test_a_pipeline_that_edits_is_not_widened_again(edit_folder):
  config = editing_config(edit_folder)
  config.widen = True
  with pytest.raises(InputError, match="whose UNet reads 8 channels"):
    setup.load_pipeline(config, [])


def test_a_lora_and_frozen_denoisers_do_not_widen(text_folder):
  config = latents.config(text_folder)
  config.widen, config.trained = True, ("text_encoder",)
  with pytest.raises(InputError, match="leaves 'unet' out"):
    setup.split_params(config, setup.load_pipeline(config, []))
  config.lora.rank, config.lora.alpha = 4, 4.0
  with pytest.raises(InputError, match=r"config\.lora\.rank must be 0 beside config\.widen"):
    configs.check(config)


def test_editing_dropout_sums_to_at_most_one(text_folder):
  config = latents.config(text_folder)
  config.editing.caption_dropout = config.editing.source_dropout = 0.6
  with pytest.raises(InputError, match=r"config\.editing\.both_dropout must be at most 1 in sum"):
    configs.check(config)


def test_new_pixel_pipelines_that_read_a_source_are_editing_pipelines(edits):
  model = smallest_config().model.to_dict()
  model["unet"] = {**model["unet"], "in_channels": 2}
  pipeline = pipelines.create(model, ["digit"], 0)
  functions = pipelines.build(pipeline)
  assert pipeline.model_index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
  assert functions.image_channels == 1
  assert functions.sample_shape((8, 8)) == (8, 8, 1)
  images = sources()[..., :1]
  np.testing.assert_array_equal(functions.encode_source({}, images), images)


@pytest.mark.slow
def test_cached_edits_train_as_their_images_do(edit_folder, tmp_path):
  rows = [
    {
      "prompt": latents.CAPTIONS[i],
      "label_0": 1,
      **{name: sets.encoded(3 * i + j, size=(20, 16)) for j, name in enumerate(IMAGES)},
    }
    for i in range(6)
  ]
  folder = folder_pairs.write_custom(tmp_path, rows)
  encoders = latent_encoders.make(
    latent_encoders.load(str(edit_folder), embeddings=True), embeddings=True, pairs=3
  )
  options = Options(size=16, crop="random", flip=True, dtype="float32", seed=5)
  cache.cache_latents(folder, tmp_path / "cached", encoders, options)
  results = []
  for section in (
    {"name": "pairs", "folder": folder, "size": 16, "crop": "random", "flip": True},
    {"name": "cached_latents", "folder": str(tmp_path / "cached")},
  ):
    config = editing_config(edit_folder)
    config.data, config.seed, config.trained = ConfigDict(section), 5, ("unet",)
    config = configs.check(config)
    pipeline = setup.load_pipeline(config, [])
    examples = setup.load_examples(config)
    batch = Batch(**setup.make_loaders(config, pipeline, examples)()[0])
    objective = setup.make_objective(config, pipeline, examples)
    trees = setup.split_params(config, pipeline, examples)
    run = jax.jit(lambda *x, f=objective: f(*x, STEP)[1], compiler_options=QUICK)
    results.append(run(*trees, batch))
  for name in NAMES:
    np.testing.assert_allclose(results[1][name], results[0][name], rtol=2e-5)
