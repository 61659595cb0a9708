"""Training on encoded pairs is training on their images, without the encoders."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.latents import cache
from dmpo_jax.data.latents import records as encoded
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import encoders
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
  """A pipeline's folder, and its pairs encoded as float32 and as float16."""

  pipeline: str
  encoded: str
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


def encode_with(pipeline, pairs, out, **options):
  """Encodes with two of the simulated devices."""
  chosen = cache.Options(size=16, **{"dtype": "float32", "batch_size": 2} | options)
  loaded = encoders.load(str(pipeline), embeddings=chosen.embeddings)
  networks = encoders.make(
    loaded, embeddings=chosen.embeddings, pairs=chosen.batch_size, devices=jax.devices()[:2]
  )
  cache.cache_latents(pairs, out, networks, chosen)
  return str(out)


@pytest.fixture(scope="module")
def settings(pairs, tmp_path_factory):
  """A `Setting` for each kind of pipeline."""
  root, found = tmp_path_factory.mktemp("pipelines"), {}
  for kind in KINDS:
    latents.write(kind, root / kind)
    found[kind] = Setting(
      str(root / kind),
      *(
        encode_with(root / kind, pairs, root / f"{kind}_{d}", dtype=d)
        for d in ("float32", "float16")
      ),
    )
  return found


def config(setting: Setting, **section):
  result = latents.config(setting.pipeline)
  result.trained = ("unet",)
  result.loss.beta = 100.0  # 5000 would make the last bits of errors visible in the loss
  result.data = ConfigDict(section)
  result.batch_size = 3
  return result


def routes(setting: Setting, pairs: str) -> dict:
  """Configs that see the same pairs."""
  given = {"micro_conditioning": True}
  return {
    "images": config(setting, name="pairs", folder=pairs, size=16, **given),
    "encoded": config(setting, name="cached_latents", folder=setting.encoded, **given),
    "rounded": config(setting, name="cached_latents", folder=setting.rounded, **given),
    "tokens": config(
      setting, name="cached_latents", folder=setting.encoded, embeddings=False, **given
    ),
  }


@pytest.fixture(scope="module")
def found(settings, pairs):
  """(kind, route) -> what the objective finds on the second batch, half the captions dropped."""
  results = {}
  for kind, setting in settings.items():
    runs = {}
    for route, chosen in routes(setting, pairs).items():
      if (kind, route) == ("sdxl", "tokens"):
        continue
      examples = setup.load_examples(chosen)
      pipeline = setup.load_pipeline(chosen, [])
      reference, frozen, _ = setup.split_params(chosen, pipeline, examples)
      trained = jax.tree.map(_moved, reference)
      batch = setup.make_loaders(chosen, pipeline, examples)()[1]
      if route == "rounded":  # the program of float32 does for both
        batch = {name: _widened(column) for name, column in batch.items()}
      objective = setup.make_objective(chosen, pipeline, examples)
      key = "encoded" if route == "rounded" else route
      if key not in runs:
        runs[key] = jax.jit(
          lambda t, f, r, b, o=objective: o(t, f, r, b, STEP)[1], compiler_options=QUICK
        )
      results[kind, route] = runs[key](trained, frozen, reference, Batch(**batch)), frozen
  return results


def _moved(x: np.ndarray) -> np.ndarray:
  """A policy that is not the reference."""
  return x + 0.01 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)


def _widened(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float32) if x.dtype == np.float16 else x


@pytest.mark.parametrize(("kind", "route"), [*((k, "encoded") for k in KINDS), ("sd", "tokens")])
def test_both_routes_find_the_same_errors_and_losses(kind, route, found):
  """Tokens alone: with the text encoder in the step."""
  ours, theirs = found[kind, route][0], found[kind, "images"][0]
  for name in NAMES:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, err_msg=name)
  np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_changes_errors_by_its_rounding(kind, found):
  for name in NAMES:
    exact, rounded = (found[kind, route][0][name] for route in ("encoded", "rounded"))
    np.testing.assert_allclose(rounded, exact, rtol=2e-3, err_msg=name)
    assert not np.array_equal(rounded, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_not_given_networks_that_it_does_not_run(kind, found):
  assert set(found[kind, "encoded"][1]) == set()
  assert "vae" in found[kind, "images"][1]
  if kind == "sd":
    assert set(found[kind, "tokens"][1]) == {"text_encoder"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_the_pipelines_own(kind, settings):
  setting = settings[kind]
  source = encoded.CachedPairSource(setting.encoded)
  layout = {name: (dtype, shape) for part in source.layout.values() for name, dtype, shape in part}
  assert layout["moments"] == ("float32", [2, 2, 8, 8, 4])
  width = {"sd": 12, "sdxl": 12 + 16}[kind]
  assert layout["embeddings"] == ("float32", [8, width])
  assert ("pooled" in layout) == ("input_ids_2" in layout) == (kind == "sdxl")
  errors = encoded.read_manifest(setting.rounded)["errors"]
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
  """SDXL's encoded pairs and the pipeline."""
  chosen = config(settings["sdxl"], name="cached_latents", folder=settings["sdxl"].encoded)
  return chosen, setup.load_examples(chosen), setup.load_pipeline(chosen, [])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda p: change_weights(p, "vae"), r"encoders\.vae\.weights: "),
    (lambda p: change_weights(p, "text_encoder_2"), r"encoders\.text_encoder_2\.weights: "),
    (
      lambda p: change_config(p, "text_encoder", hidden_act="gelu"),
      r"encoders\.text_encoder\.config\.hidden_act: 'quick_gelu' stored, 'gelu' here",
    ),
    (
      lambda p: change_config(p, "vae", norm_num_groups=2),
      r"encoders\.vae\.config\.norm_num_groups: 4 stored, 2 here",
    ),
    (
      lambda p: dataclasses.replace(
        p, tokenizers={**p.tokenizers, "tokenizer": p.tokenizers["tokenizer_2"]}
      ),
      r"tokenizers\.text_encoder: .* stored, .* here",
    ),
  ],
)
def test_another_pipelines_codes_are_refused_with_what_differs(loaded, change, message):
  chosen, examples, pipeline = loaded
  with pytest.raises(InputError, match=rf"(?s)encoded by another pipeline.*{message}"):
    setup.make_loaders(chosen, change(pipeline), examples)


def test_another_decoder_or_scale_changes_no_code(loaded):
  chosen, examples, pipeline = loaded
  params = {**pipeline.params["vae"], "decoder": {}}
  pipeline = dataclasses.replace(pipeline, params={**pipeline.params, "vae": params})
  setup.make_loaders(chosen, change_config(pipeline, "vae", scaling_factor=0.2), examples)


def test_stored_embeddings_of_a_text_encoder_that_is_trained_are_refused(loaded):
  chosen, examples, pipeline = loaded
  chosen = chosen.copy_and_resolve_references()
  chosen.trained = ("unet", "text_encoder")
  with pytest.raises(InputError, match=r"trained names 'text_encoder'.*embeddings=False"):
    setup.make_loaders(chosen, pipeline, examples)


def test_tokens_alone_do_not_ask_for_the_same_text_encoder(settings, loaded):
  chosen, _, pipeline = loaded
  chosen = config(
    settings["sdxl"], name="cached_latents", folder=settings["sdxl"].encoded, embeddings=False
  )
  chosen.trained = ("unet", "text_encoder")
  setup.make_loaders(chosen, change_weights(pipeline, "text_encoder"), setup.load_examples(chosen))


def test_a_pipeline_of_pixels_is_refused_by_both_sides(loaded, tmp_path):
  chosen, examples, pipeline = loaded
  configs = {k: v for k, v in pipeline.configs.items() if k != "vae"}
  with pytest.raises(InputError, match="denoises the images themselves"):
    setup.make_loaders(chosen, dataclasses.replace(pipeline, configs=configs), examples)
  folder = latents.tiny.write_tiny_pixels(tmp_path / "pixels")
  with pytest.raises(InputError, match=r"no VAE.*'pairs'|no VAE.*\"pairs\""):
    encoders.load(str(folder), embeddings=True)


def test_a_size_that_is_no_whole_number_of_latents_is_refused(settings, pairs, tmp_path):
  loaded = encoders.load(settings["sd"].pipeline, embeddings=False)
  networks = encoders.make(loaded, embeddings=False, pairs=2, devices=jax.devices()[:1])
  with pytest.raises(InputError, match="multiples of 2"):
    cache.cache_latents(pairs, tmp_path / "out", networks, cache.Options(size=15))


def test_devices_change_no_byte(settings, pairs, tmp_path):
  loaded = encoders.load(settings["sd"].pipeline, embeddings=True)
  networks = encoders.make(loaded, embeddings=True, pairs=2, devices=jax.devices()[:1])
  chosen = cache.Options(size=16, dtype="float32", batch_size=2)
  cache.cache_latents(pairs, tmp_path / "one", networks, chosen)
  two, one = (
    json.loads((f / encoded.MANIFEST).read_text())
    for f in (pathlib.Path(settings["sd"].encoded), tmp_path / "one")
  )
  assert one["files"] == two["files"]


def test_a_run_on_codes_learns_what_one_on_images_learns(settings, pairs, tmp_path):
  chosen = routes(settings["sd"], pairs)
  for route in ("images", "encoded"):
    chosen[route].num_steps = 2
    train(chosen[route], tmp_path / route, show_progress=False)
  theirs, ours = (metrics.read(tmp_path / route) for route in ("images", "encoded"))
  assert len(theirs) == len(ours) == 2
  for their, our in zip(theirs, ours, strict=True):
    for name in (*NAMES, "loss", "gradient_norm", "parameter_norm"):
      np.testing.assert_allclose(our[name], their[name], rtol=1e-3, err_msg=name)
  wrong = chosen["encoded"]
  wrong.data.folder, wrong.num_steps = settings["sd"].rounded, 3
  with pytest.raises(InputError, match="run"):
    train(wrong, tmp_path / "encoded", show_progress=False)
