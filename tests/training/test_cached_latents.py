"""Training on cached latents and text embeddings equals training on images."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.latents import cache, records
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import latent_encoders
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.run import train
from tests.data import sets
from tests.training import latents

STEP = np.int32(4)
KINDS = ("sd", "sdxl")
QUICK = {"xla_backend_optimization_level": 0}
NAMES = ("policy_w", "policy_l", "reference_w", "reference_l")


@dataclasses.dataclass(frozen=True)
class Setting:
  """Folders of a pipeline, and of its cached latents in float32 and in float16."""

  pipeline: str
  cached: str
  rounded: str


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Six pairs of images of 20x16 pixels, a tie among them, two with one caption."""
  root = tmp_path_factory.mktemp("own")
  captions = [*latents.CAPTIONS[:5], latents.CAPTIONS[0]]
  lines = ["prompt,image_0,image_1,label_0"]
  lines += [
    f"{c},{i}.png,{i + 1}.png,{label}"
    for i, (c, label) in enumerate(zip(captions, "101001", strict=True))
  ]
  lines[3] = lines[3][:-1] + "0.5"
  table = sets.custom(root / "source", lines, images=7)
  convert.convert(source_reader.find("custom", table), root / "out", Options())
  return str(root / "out")


def cache_with(pipeline, pairs, out, **options):
  """Folder of the pairs' cached latents, computed on two of the simulated devices."""
  options = cache.Options(size=16, **{"dtype": "float32", "batch_size": 2} | options)
  loaded = latent_encoders.load(str(pipeline), embeddings=options.embeddings)
  encoders = latent_encoders.make(
    loaded, embeddings=options.embeddings, pairs=options.batch_size, devices=jax.devices()[:2]
  )
  cache.cache_latents(pairs, out, encoders, options)
  return str(out)


@pytest.fixture(scope="module")
def settings(pairs, tmp_path_factory):
  """Kind of pipeline -> `Setting`."""
  root, by_kind = tmp_path_factory.mktemp("pipelines"), {}
  for kind in KINDS:
    latents.write(kind, root / kind)
    folders = (
      cache_with(root / kind, pairs, root / f"{kind}_{dtype}", dtype=dtype)
      for dtype in ("float32", "float16")
    )
    by_kind[kind] = Setting(str(root / kind), *folders)
  return by_kind


def config(setting: Setting, **section):
  result = latents.config(setting.pipeline)
  result.trained = ("unet",)
  result.loss.beta = 100.0  # 5000 would make the last bits of errors visible in the loss
  result.data = ConfigDict(section)
  result.batch_size = 3
  return result


def configs_of(setting: Setting, pairs: str) -> dict:
  """Configs of the same pairs: images, cached latents and embeddings, cached latents alone."""

  def cached(folder: str, **options):
    return config(setting, name="cached_latents", folder=folder, micro_conditioning=True, **options)

  return {
    "images": config(setting, name="pairs", folder=pairs, size=16, micro_conditioning=True),
    "cached": cached(setting.cached),
    "rounded": cached(setting.rounded),
    "tokens": cached(setting.cached, embeddings=False),
  }


@pytest.fixture(scope="module")
def results(settings, pairs):
  """(kind, data) -> metrics of the second batch, half the captions dropped, and frozen params."""
  results = {}
  for kind, setting in settings.items():
    runs = {}
    for data, options in configs_of(setting, pairs).items():
      if (kind, data) == ("sdxl", "tokens"):
        continue
      examples = setup.load_examples(options)
      pipeline = setup.load_pipeline(options, [])
      reference, frozen, _ = setup.split_params(options, pipeline, examples)
      trained = jax.tree.map(_moved, reference)
      batch = setup.make_loaders(options, pipeline, examples)()[1]
      if data == "rounded":  # the program of float32 serves both
        batch = jax.tree.map(_to_float32, batch)
      objective = setup.make_objective(options, pipeline, examples)
      key = "cached" if data == "rounded" else data
      if key not in runs:
        runs[key] = jax.jit(
          lambda t, f, r, b, o=objective: o(t, f, r, b, STEP)[1], compiler_options=QUICK
        )
      results[kind, data] = runs[key](trained, frozen, reference, Batch(**batch)), frozen
  return results


def _moved(x: np.ndarray) -> np.ndarray:
  """A policy that is not the reference."""
  return x + 0.01 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)


def _to_float32(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float32) if x.dtype == np.float16 else x


@pytest.mark.parametrize(("kind", "data"), [*((k, "cached") for k in KINDS), ("sd", "tokens")])
def test_errors_and_losses_of_cached_latents_are_those_of_images(kind, data, results):
  cached, images = results[kind, data][0], results[kind, "images"][0]
  for name in NAMES:
    np.testing.assert_allclose(cached[name], images[name], rtol=2e-5, err_msg=name)
  np.testing.assert_allclose(cached["loss"], images["loss"], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_changes_errors_by_its_rounding(kind, results):
  for name in NAMES:
    exact, rounded = (results[kind, data][0][name] for data in ("cached", "rounded"))
    np.testing.assert_allclose(rounded, exact, rtol=2e-3, err_msg=name)
    assert not np.array_equal(rounded, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_takes_no_networks_whose_results_are_cached(kind, results):
  assert set(results[kind, "cached"][1]) == set()
  assert "vae" in results[kind, "images"][1]
  if kind == "sd":
    assert set(results[kind, "tokens"][1]) == {"text_encoder"}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_names_in_the_cache_are_those_of_the_pipeline(kind, settings):
  setting = settings[kind]
  source = records.CachedPairSource(setting.cached)
  layout = {name: (dtype, shape) for part in source.layout.values() for name, dtype, shape in part}
  assert layout["latents"] == ("float32", [2, 2, 8, 8, 4])
  width = {"sd": 12, "sdxl": 12 + 16}[kind]
  assert layout["encoder_hidden_states"] == ("float32", [8, width])
  assert ("text_embeds" in layout) == ("input_ids_2" in layout) == (kind == "sdxl")
  errors = records.read_manifest(setting.rounded)["errors"]
  assert all(0 < error["rms"] < 2.0**-11 for error in errors.values())


def change_weights(pipeline, name: str):
  """A loaded pipeline in which one number of a network is another."""
  params = jax.tree.map(np.copy, pipeline.params)
  leaf = jax.tree.leaves(params[name].get("encoder", params[name]))[0]
  leaf.reshape(-1)[0] += 1e-3
  return dataclasses.replace(pipeline, params=params)


def change_config(pipeline, name: str, **fields):
  configs = {**pipeline.configs, name: {**pipeline.configs[name], **fields}}
  return dataclasses.replace(pipeline, configs=configs)


@pytest.fixture(scope="module")
def loaded(settings):
  """Config, cached latents and pipeline of SDXL."""
  options = config(settings["sdxl"], name="cached_latents", folder=settings["sdxl"].cached)
  return options, setup.load_examples(options), setup.load_pipeline(options, [])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda p: change_weights(p, "vae"), r"encoders\.vae\.weights: "),
    (lambda p: change_weights(p, "text_encoder_2"), r"encoders\.text_encoder_2\.weights: "),
    (
      lambda p: change_config(p, "text_encoder", hidden_act="gelu"),
      r"encoders\.text_encoder\.config\.hidden_act: 'quick_gelu' cached, 'gelu' here",
    ),
    (
      lambda p: change_config(p, "vae", norm_num_groups=2),
      r"encoders\.vae\.config\.norm_num_groups: 4 cached, 2 here",
    ),
    (
      lambda p: dataclasses.replace(
        p, tokenizers={**p.tokenizers, "tokenizer": p.tokenizers["tokenizer_2"]}
      ),
      r"tokenizers\.text_encoder: .* cached, .* here",
    ),
  ],
)
def test_latents_cached_by_another_pipeline_are_refused_with_the_differences(
  loaded, change, message
):
  options, examples, pipeline = loaded
  with pytest.raises(InputError, match=rf"(?s)cached by another pipeline.*{message}"):
    setup.make_loaders(options, change(pipeline), examples)


def test_another_decoder_or_scale_is_accepted(loaded):
  options, examples, pipeline = loaded
  params = {**pipeline.params["vae"], "decoder": {}}
  pipeline = dataclasses.replace(pipeline, params={**pipeline.params, "vae": params})
  setup.make_loaders(options, change_config(pipeline, "vae", scaling_factor=0.2), examples)


def test_cached_embeddings_of_a_trained_text_encoder_are_refused(loaded):
  options, examples, pipeline = loaded
  options = options.copy_and_resolve_references()
  options.trained = ("unet", "text_encoder")
  with pytest.raises(InputError, match=r"trained names 'text_encoder'.*embeddings=False"):
    setup.make_loaders(options, pipeline, examples)


def test_without_cached_embeddings_another_text_encoder_is_accepted(settings, loaded):
  setting, pipeline = settings["sdxl"], loaded[2]
  options = config(setting, name="cached_latents", folder=setting.cached, embeddings=False)
  options.trained = ("unet", "text_encoder")
  pipeline = change_weights(pipeline, "text_encoder")
  setup.make_loaders(options, pipeline, setup.load_examples(options))


def test_a_pipeline_of_pixels_is_refused_in_training_and_in_caching(loaded, tmp_path):
  options, examples, pipeline = loaded
  index, configs = (
    {k: v for k, v in part.items() if k != "vae"}
    for part in (pipeline.model_index, pipeline.configs)
  )
  pixels = dataclasses.replace(pipeline, model_index=index, configs=configs)
  with pytest.raises(InputError, match="denoises pixels"):
    setup.make_loaders(options, pixels, examples)
  folder = latents.tiny.write_tiny_pixels(tmp_path / "pixels")
  with pytest.raises(InputError, match=r"no autoencoder.*\"pairs\""):
    latent_encoders.load(str(folder), embeddings=True)


def test_a_variant_that_the_pipeline_lacks_is_refused(settings):
  with pytest.raises(InputError, match="no weights of the variant 'fp16'"):
    latent_encoders.load(settings["sd"].pipeline, embeddings=True, variant="fp16")


def test_a_size_that_is_no_multiple_of_the_downscale_is_refused(settings, pairs, tmp_path):
  loaded = latent_encoders.load(settings["sd"].pipeline, embeddings=False)
  encoders = latent_encoders.make(loaded, embeddings=False, pairs=2, devices=jax.devices()[:1])
  with pytest.raises(InputError, match="multiples of 2"):
    cache.cache_latents(pairs, tmp_path / "out", encoders, cache.Options(size=15))


def test_the_number_of_devices_changes_no_byte(settings, pairs, tmp_path):
  loaded = latent_encoders.load(settings["sd"].pipeline, embeddings=True)
  encoders = latent_encoders.make(loaded, embeddings=True, pairs=2, devices=jax.devices()[:1])
  options = cache.Options(size=16, dtype="float32", batch_size=2)
  cache.cache_latents(pairs, tmp_path / "one", encoders, options)
  two, one = (
    json.loads((f / records.MANIFEST).read_text())
    for f in (pathlib.Path(settings["sd"].cached), tmp_path / "one")
  )
  assert one["files"] == two["files"]


@pytest.mark.slow
def test_a_run_on_cached_latents_has_the_metrics_of_one_on_images(settings, pairs, tmp_path):
  by_data = configs_of(settings["sd"], pairs)
  for data in ("images", "cached"):
    by_data[data].num_steps = 2
    train(by_data[data], tmp_path / data, show_progress=False)
  images, cached = (metrics.read(tmp_path / data) for data in ("images", "cached"))
  assert len(images) == len(cached) == 2
  for row, other in zip(images, cached, strict=True):
    for name in (*NAMES, "loss", "gradient_norm", "parameter_norm"):
      np.testing.assert_allclose(other[name], row[name], rtol=1e-3, err_msg=name)
  rounded = by_data["cached"]
  rounded.data.folder, rounded.num_steps = settings["sd"].rounded, 3
  with pytest.raises(InputError, match="run"):
    train(rounded, tmp_path / "cached", show_progress=False)
