"""A model family that this file alone defines trains, caches, resumes, samples and exports."""

import dataclasses
import hashlib
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dmpo_jax import interop, models, pipelines
from dmpo_jax.commands.main import main
from dmpo_jax.data.latents import cache
from dmpo_jax.diffusion import Solver, Steps
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.pipelines import latent_encoders
from dmpo_jax.sampling import initial_noise
from dmpo_jax.training.config import default
from dmpo_jax.training.export import export
from dmpo_jax.training.run import train

NAME = "ToyPipeline"
COMPONENTS = ("denoiser", "patches", "letters")
PATCH, LATENTS, WIDTH, LETTERS, LENGTH = 4, 6, 8, 128, 12


class Interpolation:
  """x_t = (1 - t) x_0 + t eps for t in [0, 1]; the target is the velocity eps - x_0."""

  def add_noise(self, x0, noise, t):
    t = t.reshape(-1, *[1] * (x0.ndim - 1))
    return (1 - t) * x0 + t * noise

  def target(self, x0, noise, t):
    return noise - x0

  def snr(self, t):
    return jnp.square((1 - t) / t)

  def timestep_sampler(self, config):
    if config["name"] != "uniform":
      raise InputError(f"timestep sampler {config['name']!r} is unknown; expected 'uniform'")
    return lambda step_key, keys: jax.vmap(jax.random.uniform)(keys)

  def weights(self, config):
    if config["name"] != "none":
      raise InputError(f"timestep weight {config['name']!r} is unknown; expected 'none'")

  def bins(self, count):
    return np.linspace(0, 1, count + 1, dtype=np.float32)

  def sample_between(self, key, low, high):
    return jax.random.uniform(key, (), minval=low, maxval=high)


def euler(num_steps, *, name=None, karras=None, size=None) -> Solver:
  """x_{i+1} = x_i + (t_{i+1} - t_i) v_i from t = 1 to t = 0."""
  if name not in (None, "euler"):
    raise InputError(f"solver {name!r} is unknown; expected 'euler'")
  times = np.linspace(1, 0, num_steps + 1)
  zeros, ones = np.zeros(num_steps), np.ones(num_steps)
  steps = Steps(
    timestep=times[:-1].astype(np.float32),
    input_scale=ones,
    clean_x=ones,
    clean_f=-times[:-1],
    on_x=ones,
    on_f=np.diff(times),
    on_clean=zeros,
    on_before=zeros[:, None],
    on_noise=zeros,
  )
  return Solver(steps, initial_scale=1.0)


def tokenize(captions):
  rows = [[ord(c) % LETTERS for c in caption[:LENGTH]] for caption in captions]
  letters = np.array([row + [0] * (LENGTH - len(row)) for row in rows], np.int32)
  return {"letters": letters}, sum(len(caption) > LENGTH for caption in captions)


def build(pipeline, *, dtype="float32", compute=None):
  side = pipeline.configs["denoiser"]["size"]

  def encode_text(params, text):
    if "mood" in text:
      return {"mood": text["mood"].astype(jnp.float32)}
    return {"mood": params["letters"]["table"]["embedding"][text["letters"]].mean(axis=1)}

  def posterior(params, images):  # a patch of pixels becomes a latent of LATENTS channels
    b, h, w, c = images.shape
    patches = images.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c).swapaxes(2, 3)
    mean = patches.reshape(b, h // PATCH, w // PATCH, -1) @ params["patches"]["encoder"]["kernel"]
    return models.Posterior(mean, jnp.full_like(mean, -8.0))

  def decode(params, x0):
    b, h, w, _ = x0.shape
    patches = x0 @ params["patches"]["encoder"]["kernel"].T
    patches = patches.reshape(b, h, w, PATCH, PATCH, 3).swapaxes(2, 3)
    return patches.reshape(b, h * PATCH, w * PATCH, 3)

  def denoise(params, x_t, t, conditioning):
    layers = params["denoiser"]
    condition = jnp.concatenate([conditioning["mood"], t[:, None].astype(jnp.float32)], axis=1)
    hidden = x_t @ layers["first"]["kernel"]
    hidden = hidden + (condition @ layers["condition"]["kernel"])[:, None, None]
    return (jnp.tanh(hidden) @ layers["second"]["kernel"]).astype(dtype)

  def flops(batch, *, trained, reference, lora):
    images = batch.latents.shape[1] if batch.pixels is None else batch.pixels.shape[1]
    forward = 4 * (side // PATCH) ** 2 * LATENTS * WIDTH
    return {"denoiser": images * forward * (3 + reference)}

  return pipelines.TextToImage(
    components=COMPONENTS,
    denoiser="denoiser",
    text_encoders=("letters",),
    autoencoder="patches",
    process=Interpolation(),
    image_channels=3,
    text_shapes={"letters": jax.ShapeDtypeStruct((LENGTH,), jnp.int32)},
    uses_geometry=False,
    zero_null_text=False,
    default_guidance=2.0,
    default_size=lambda: (side, side),
    lora_targets={"denoiser": ("first", "second")},
    tokenize=tokenize,
    encode_text=encode_text,
    condition=lambda text, geometry, source: text,
    denoise=denoise,
    posterior=posterior,
    scale=lambda z: 0.5 * z,
    decode=lambda params, x0: decode(params, 2.0 * x0),
    sample_shape=lambda size: (size[0] // PATCH, size[1] // PATCH, LATENTS),
    make_solver=euler,
    solver_settings=lambda name=None, karras=None: {"solver": name or "euler"},
    flops=flops,
  )


def encoder_fingerprint(pipeline, *, embeddings):
  digests = {}
  for name in ("patches", "letters")[: 1 + embeddings]:
    leaves = sorted(trees.flatten(pipeline.params[name]).items())
    digests[name] = hashlib.sha256(b"".join(np.asarray(x).tobytes() for _, x in leaves)).hexdigest()
  return {"encoders": digests, "tokenizers": {}}


def save(folder, pipeline, **options):
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {k: np.asarray(x) for k, x in trees.flatten(pipeline.params).items()}
  np.savez(folder / "params.npz", **arrays)
  (folder / "model_index.json").write_text(json.dumps(pipeline.model_index))
  (folder / "configs.json").write_text(json.dumps(pipeline.configs))


def load(source, *, components=None, shardings=None, **options):
  folder, params = pathlib.Path(source), {}
  with np.load(folder / "params.npz") as arrays:
    for path, array in arrays.items():
      tree = params
      *parents, leaf = path.split(".")
      for name in parents:
        tree = tree.setdefault(name, {})
      tree[leaf] = array
  wanted = params if components is None else components
  params = {name: params[name] for name in params if name in wanted}
  if shardings:
    params = {name: jax.device_put(x, shardings(name, x)) for name, x in params.items()}
  index, configs = (
    json.loads((folder / f"{name}.json").read_text()) for name in ("model_index", "configs")
  )
  return interop.Pipeline(index, configs, params)


def random_pipeline():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return (rng.normal(size=shape) / math.sqrt(shape[0])).astype(np.float32)

  orthogonal = np.linalg.qr(rng.normal(size=(3 * PATCH**2, LATENTS)))[0].astype(np.float32)
  params = {
    "denoiser": {
      "first": {"kernel": normal(LATENTS, WIDTH)},
      "condition": {"kernel": normal(WIDTH + 1, WIDTH)},
      "second": {"kernel": normal(WIDTH, LATENTS)},
    },
    "patches": {"encoder": {"kernel": orthogonal}},
    "letters": {"table": {"embedding": normal(LETTERS, WIDTH)}},
  }
  configs = {"denoiser": {"size": 16}, "patches": {}, "letters": {}, "scheduler": {}}
  return interop.Pipeline({"_class_name": NAME}, configs, params)


@pytest.fixture(autouse=True)
def family(monkeypatch):
  toy = pipelines.Family(build, encoder_fingerprint, load=load, save=save)
  monkeypatch.setitem(pipelines.FAMILIES, NAME, toy)


@pytest.fixture
def folder(tmp_path):
  save(tmp_path / "toy", random_pipeline())
  return tmp_path / "toy"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Converted pairs of random images, eight to train on and four held out."""
  root, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(1)
  lines = ["prompt,image_0,image_1,label_0"]
  for i in range(24):
    for j in range(2):
      pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(root / f"{i}_{j}.png")
    lines.append(f"caption {i},{i}_0.png,{i}_1.png,{i % 2}")
  (root / "pairs.csv").write_text("\n".join(lines) + "\n")
  splits = "train=0.6,validation=0.4"
  table, out = str(root / "pairs.csv"), str(root / "out")
  assert main(["data", "convert", "pairs", table, "--out", out, "--splits", splits]) == 0
  return out


def config(pipeline, **data):
  result = default()
  result.pipeline = str(pipeline)
  result.data = ConfigDict(data)
  result.loss = ConfigDict({"name": "dmpo", "beta": 50.0, "alpha": 0.05})
  result.caption_dropout = 0.3
  result.batch_size, result.num_steps = 4, 4
  result.optimizer.learning_rate = 1e-2
  result.checkpoint.every = 2
  result.num_devices = 1
  return result


def params_of(folder):
  return trees.flatten(load(folder).params)


def test_it_trains_resumes_evaluates_and_writes_its_own_format(folder, pairs, tmp_path):
  plain = config(folder, name="pairs", folder=pairs, size=16, split="train")
  plain.held_out.every, plain.held_out.pairs, plain.held_out.bins = 2, 4, 2
  plain.samples.every, plain.samples.prompts = 2, ("caption 1",)
  plain.samples.seeds, plain.samples.steps = 2, 3
  whole = train(plain, tmp_path / "whole", show_progress=False)
  half = ConfigDict(plain)
  half.num_steps = 2
  train(half, tmp_path / "resumed", show_progress=False)
  shutil.rmtree(tmp_path / "resumed" / "pipeline")
  resumed = train(plain, tmp_path / "resumed", show_progress=False)
  assert resumed.resumed_at == 2
  start, one, other = map(params_of, (folder, whole.pipeline, resumed.pipeline))
  for name in start:
    np.testing.assert_array_equal(one[name], other[name])
    assert np.array_equal(start[name], one[name]) != name.startswith("denoiser")
  lines = (tmp_path / "whole/metrics/held_out-000000.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [(part["from"], part["to"]) for part in rows[0]["bins"]] == [(0.0, 0.5), (0.5, 1.0)]
  assert Image.open(tmp_path / "whole/samples/step_000004.png").size == (32, 16)
  assert export(tmp_path / "whole", tmp_path / "exported") == 4
  for name, array in params_of(tmp_path / "exported").items():
    np.testing.assert_array_equal(array, one[name])


def test_its_cached_latents_and_embeddings_train_as_its_images_do(folder, pairs, tmp_path):
  loaded = latent_encoders.load(str(folder), embeddings=True)
  encoders = latent_encoders.make(loaded, embeddings=True, pairs=2, devices=jax.devices()[:1])
  options = cache.Options(size=16, dtype="float32", batch_size=2)
  cache.cache_latents(pathlib.Path(pairs), tmp_path / "cached", encoders, options)
  cached = config(folder, name="cached_latents", folder=str(tmp_path / "cached"))
  images = config(folder, name="pairs", folder=pairs, size=16, split="train")
  runs = [train(c, tmp_path / n, show_progress=False) for c, n in ((cached, "c"), (images, "i"))]
  one, other = (params_of(run.pipeline) for run in runs)
  for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_latents_cached_by_other_encoders_are_refused(folder, pairs, tmp_path):
  loaded = latent_encoders.load(str(folder), embeddings=False)
  encoders = latent_encoders.make(loaded, embeddings=False, pairs=2, devices=jax.devices()[:1])
  options = cache.Options(size=16, embeddings=False, batch_size=2)
  cache.cache_latents(pathlib.Path(pairs), tmp_path / "cached", encoders, options)
  other = random_pipeline()
  patches = {"encoder": {"kernel": 2 * other.params["patches"]["encoder"]["kernel"]}}
  save(folder, dataclasses.replace(other, params={**other.params, "patches": patches}))
  section = {"name": "cached_latents", "folder": str(tmp_path / "cached"), "embeddings": False}
  with pytest.raises(InputError, match="cached by another pipeline"):
    train(config(folder, **section), tmp_path / "run", show_progress=False)


def test_it_samples_the_same_images_by_the_command_and_by_the_functions(folder, tmp_path):
  pipeline = pipelines.load(folder)
  functions = pipelines.build(pipeline)
  sampler = pipelines.make_sampler(functions, functions.make_solver(3), guidance=2.0)
  inputs, _ = pipelines.sampling_inputs(functions, ["caption 1"] * 2, np.array([0, 1]))
  images = pipelines.sample_all(sampler, pipeline.params, inputs, batch_size=2)
  assert images.shape == (2, 16, 16, 3)
  command = ["sample", "--pipeline", str(folder), "--prompt", "caption 1", "--seeds", "2"]
  assert main([*command, "--steps", "3", "--out", str(tmp_path / "out")]) == 0
  for i, image in enumerate(images):
    pixels = np.asarray(Image.open(tmp_path / f"out/00000_{i:010d}.png")).astype(int)
    assert np.abs(pixels - np.clip(np.round((image + 1) * 127.5), 0, 255)).max() <= 1


def test_one_euler_step_from_noise_is_noise_less_the_guided_velocity(folder):
  pipeline = pipelines.load(folder)
  functions = pipelines.build(pipeline)
  sampler = pipelines.make_sampler(functions, functions.make_solver(1), guidance=3.0)
  inputs, _ = pipelines.sampling_inputs(functions, ["caption 1"], np.array([5]))
  noise = initial_noise([5], (4, 4, LATENTS))
  time = jnp.ones(1)
  null, text = (
    functions.denoise(
      pipeline.params, noise, time, functions.encode_text(pipeline.params, tokenize([c])[0])
    )
    for c in ("", "caption 1")
  )
  expected = functions.decode(pipeline.params, noise - (null + 3.0 * (text - null)))
  images = pipelines.sample_all(sampler, pipeline.params, inputs, batch_size=1)
  np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)
