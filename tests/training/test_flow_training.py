"""Training of Stable Diffusion 3 by flow matching: its errors against torch, every loss, runs."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from ml_collections import ConfigDict

from dmpo_jax import interop, losses, pipelines
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.latents import cache
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.pipelines import latent_encoders
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, sample_noise, sample_posterior_noise
from dmpo_jax.training.config import default
from dmpo_jax.training.run import train
from tests.data import sets
from tests.interop import tiny_sd3
from tests.losses import cases
from tests.training import latents

STEP = np.int32(3)
WORDS = ("the", "digit", "seven", "one")


def config(pipeline, **section):
  result = default()
  result.pipeline = str(pipeline)
  result.data = ConfigDict({"name": "pairs", "folder": "", "size": 16, **section})
  result.loss = ConfigDict({"name": "dmpo", "beta": 100.0, "alpha": 0.05})
  result.timesteps = ConfigDict({"name": "logit_normal", "stratified": True})
  result.caption_dropout = 0.5
  result.batch_size, result.num_steps = 4, 2
  result.optimizer.learning_rate = 1e-2
  # The gradient of a key's bias is rounding noise, which Adam would scale up to the learning rate.
  result.optimizer.eps = 1e-3
  result.checkpoint.every = 1
  result.num_devices = 1
  return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_sd3.write(tmp_path_factory.mktemp("sd3"), t5=False)


@dataclasses.dataclass(frozen=True)
class Setting:
  """An objective, a prepared batch, and the errors and residuals of its pairs."""

  objective: object
  batch: Batch
  params: dict
  errors: losses.PairErrors
  residuals: losses.Residuals


@pytest.fixture(scope="module")
def setting(folder):
  """DSPO, which takes residuals, with a policy that is not the reference."""
  options = config(folder)
  options.loss = ConfigDict({"name": "dspo", "beta": 0.5})
  pipeline = setup.load_pipeline(options, [])
  reference, frozen, _ = setup.split_params(options, pipeline)
  rng = np.random.default_rng(1)
  trained = jax.tree.map(
    lambda x: x + 0.01 * rng.normal(size=x.shape).astype(np.float32), reference
  )
  objective = setup.make_objective(options, pipeline)
  pairs = latents.examples()
  text, _ = objective.pipeline.tokenize(latents.CAPTIONS)
  batch = objective.prepare(Batch(text, pairs.ids, pixels=pairs.images), STEP)
  errors, residuals = jax.jit(objective.evaluate)(trained, frozen, reference, batch, STEP)
  return Setting(objective, batch, {**frozen, **trained}, errors, residuals)


def torch_state(module, params):
  arrays = interop.to_torch_state(params)
  state = module.state_dict()
  module.load_state_dict({**state, **{k: torch.from_numpy(v) for k, v in arrays.items()}})
  return module


def test_the_errors_are_those_of_torch_on_the_same_noise_and_times(setting, folder):
  pipeline, batch = setting.objective.pipeline, setting.batch
  shape = (8, 8, 4)
  sample = sample_noise(0, STEP, batch, shape, 0.5)
  vae = AutoencoderKL.from_pretrained(folder / "vae")
  transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer")
  transformer = torch_state(transformer, setting.params["transformer"])
  text = {
    name: np.where(np.asarray(sample.dropped)[:, None], setting.objective.null_text[name], ids)
    for name, ids in batch.text.items()
  }
  encoded = jax.jit(pipeline.encode_text)(setting.params, text)
  encoded = pipeline.condition(encoded, None, None)

  def tensor(x):
    return torch.from_numpy(np.array(x, np.float32))

  def channels_first(x):
    return tensor(np.moveaxis(np.asarray(x), -1, 1))

  posterior_noise = sample_posterior_noise(0, STEP, batch, 2, shape)
  for image, ours in enumerate((setting.errors.policy_w, setting.errors.policy_l)):
    with torch.no_grad():
      posterior = vae.encode(channels_first(batch.pixels[:, image])).latent_dist
      x0 = posterior.mean + posterior.std * channels_first(posterior_noise[:, image])
      x0 = (x0 - vae.config.shift_factor) * vae.config.scaling_factor
      noise, sigma = channels_first(sample.noise), tensor(batch.timesteps)
      t = sigma[:, None, None, None]
      velocity = transformer(
        (1 - t) * x0 + t * noise,
        tensor(encoded["encoder_hidden_states"]),
        tensor(encoded["pooled_projections"]),
        1000 * sigma,
      ).sample
      theirs = (velocity - (noise - x0)).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_times_are_stratified_levels_shifted_as_the_scheduler_says(setting):
  t = np.sort(setting.batch.timesteps)
  unshifted = t / (3 - 2 * t)
  assert np.all((t > 0) & (t < 1))
  from scipy.stats import norm

  part = np.floor(norm.cdf(np.log(unshifted / (1 - unshifted))) * len(t) + 1e-4)
  np.testing.assert_array_equal(part, np.arange(len(t)))


@pytest.mark.parametrize("name", cases.NAMES)
def test_every_loss_is_finite_on_velocity_errors_and_at_its_start_where_nothing_is_learned(
  name, setting
):
  loss = cases.bind(name)
  needs = losses.requirements(loss)
  objective = setting.objective._replace(loss=loss)
  residuals = setting.residuals if needs.residuals else None

  def total(inputs):
    return jnp.sum(objective.loss_of(setting.batch, *inputs)[0])

  value, gradient = jax.jit(jax.value_and_grad(total))((setting.errors, residuals))
  leaves = jax.tree.leaves(gradient)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in leaves)
  assert any(np.any(g != 0) for g in leaves)
  same = setting.errors._replace(
    policy_w=setting.errors.reference_w, policy_l=setting.errors.reference_l
  )
  if needs.reference and needs.rejected and not needs.residuals and name != "kto":
    metrics = objective.loss_of(setting.batch, same, None)[1]
    np.testing.assert_array_equal(metrics["logit"], 0)


def test_the_weight_epsilon_gives_the_loss_of_errors_of_the_noise(setting):
  process = setting.objective.pipeline.process
  dpo = cases.bind("dpo")
  objective = setting.objective._replace(loss=dpo, weights=process.weights({"name": "epsilon"}))
  found = objective.loss_of(setting.batch, setting.errors, None)[0]
  # eps' - eps = (1 - t) (v' - v), from the residuals of the velocity.
  t = np.float64(setting.batch.timesteps)[:, None, None, None]
  of_noise = [np.square((1 - t) * np.float64(r)).mean((1, 2, 3)) for r in setting.residuals]
  expected = dpo(losses.PairErrors(*(jnp.float32(e) for e in of_noise)))[0]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Converted pairs of images, about eight to train on and four held out."""
  root = tmp_path_factory.mktemp("own")
  lines = ["prompt,image_0,image_1,label_0"]
  words = [" ".join(pair) for pair in itertools.product(WORDS, WORDS)]
  lines += [f"{words[i]},{i}.png,{i + 1}.png,{i % 2}" for i in range(16)]
  table = sets.custom(root / "source", lines, images=17)
  options = Options(splits={"train": 0.6, "validation": 0.4})
  convert.convert(source_reader.find("custom", table), root / "out", options)
  return str(root / "out")


@pytest.fixture(scope="module")
def cached(folder, pairs, tmp_path_factory):
  loaded = latent_encoders.load(str(folder), embeddings=True)
  encoders = latent_encoders.make(loaded, embeddings=True, pairs=2, devices=jax.devices()[:1])
  out = tmp_path_factory.mktemp("latents") / "out"
  options = cache.Options(size=16, dtype="float32", batch_size=2)
  cache.cache_latents(pathlib.Path(pairs), out, encoders, options)
  return {"name": "cached_latents", "folder": str(out)}


def cached_config(folder, cached):
  result = config(folder)
  result.data = ConfigDict(cached)
  return result


def transformer_of(run):
  return trees.flatten(pipelines.load(run.pipeline, components=["transformer"]).params)


def test_a_lora_on_cached_latents_and_text_resumes_bit_for_bit_and_samples(
  folder, cached, tmp_path
):
  whole = cached_config(folder, cached)
  whole.lora.rank, whole.lora.alpha = 2, 2.0
  whole.samples.every, whole.samples.prompts = 2, ("one",)
  whole.samples.seeds, whole.samples.steps = 1, 2
  one = train(whole, tmp_path / "whole", show_progress=False)
  half = ConfigDict(whole)
  half.num_steps = 1
  train(half, tmp_path / "resumed", show_progress=False)
  shutil.rmtree(tmp_path / "resumed" / "pipeline")
  other = train(whole, tmp_path / "resumed", show_progress=False)
  assert other.resumed_at == 1
  start = trees.flatten(pipelines.load(folder, components=["transformer"]).params)
  one, other = transformer_of(one), transformer_of(other)
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[name])
  changed = {n.removesuffix(".kernel") for n, x in one.items() if not np.array_equal(x, start[n])}
  attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
  assert changed
  assert all(
    name.split("attn")[-1].lstrip("2").lstrip(".") in (*attention, "to_add_out") for name in changed
  ), changed
  assert {"transformer.transformer_blocks.0.attn.add_k_proj"} <= changed


@pytest.mark.slow
def test_the_whole_transformer_trains_alike_from_images_and_cached_on_two_sharded_devices(
  folder, pairs, cached, tmp_path
):
  images = config(folder, folder=pairs, split="train")
  images.held_out.every, images.held_out.pairs, images.held_out.bins = 2, 2, 2
  sharded = cached_config(folder, cached)
  sharded.num_devices, sharded.mesh.fsdp = 2, 2
  runs = [train(c, tmp_path / n, show_progress=False) for c, n in ((images, "a"), (sharded, "b"))]
  row = json.loads((tmp_path / "a/metrics/held_out-000000.jsonl").read_text().splitlines()[0])
  assert [(part["from"], part["to"]) for part in row["bins"]] == [(0.0, 0.5), (0.5, 1.0)]
  start = trees.flatten(pipelines.load(folder, components=["transformer"]).params)
  one, other = map(transformer_of, runs)
  for name, leaf in one.items():
    assert not np.array_equal(leaf, start[name]) or "context_embedder" in name or "add_q" in name
    np.testing.assert_allclose(leaf, other[name], rtol=1e-4, atol=2e-4)


def test_a_dynamic_shift_needs_a_shift_for_training(folder):
  options = config(folder)
  pipeline = setup.load_pipeline(options, [])
  scheduler = {**pipeline.configs["scheduler"], "use_dynamic_shifting": True}
  pipeline = dataclasses.replace(pipeline, configs={**pipeline.configs, "scheduler": scheduler})
  with pytest.raises(InputError, match=r"set config\.timesteps\.shift"):
    setup.make_objective(options, pipeline)
  options.timesteps.shift = 3.0
  setup.make_objective(options, pipeline)


def test_new_networks_are_a_pipeline_that_diffusers_samples_alike(tmp_path):
  import diffusers

  from dmpo_jax.configs import digits_flow_reference
  from dmpo_jax.sampling import initial_noise

  model = digits_flow_reference.get_config().model.to_dict()
  model["transformer"]["num_layers"] = 1
  pipeline = pipelines.create(model, ["the digit seven"], 0)
  functions = pipelines.build(pipeline)
  # A new network's last layer and gates are near zero: the images would be the noise.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), pipeline.params
  )
  pipeline = dataclasses.replace(pipeline, params=params)
  sampler = pipelines.make_sampler(functions, functions.make_solver(3), guidance=2.0)
  inputs, _ = pipelines.sampling_inputs(functions, ["the digit seven"] * 2, np.arange(2))
  ours = pipelines.sample_all(sampler, params, inputs, batch_size=2, devices=jax.devices()[:1])
  pipelines.save(tmp_path / "saved", pipeline)
  theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(
    tmp_path / "saved", vae=None, text_encoder_3=None, tokenizer_3=None
  )
  theirs.set_progress_bar_config(disable=True)
  noise = np.moveaxis(np.array(initial_noise([0, 1], (8, 8, 1))), -1, 1)
  with torch.inference_mode():
    expected = theirs(
      ["the digit seven"] * 2,
      latents=torch.from_numpy(noise),
      num_inference_steps=3,
      guidance_scale=2.0,
      max_sequence_length=0,
      output_type="latent",
    ).images
  assert ours.shape == (2, 8, 8, 1)
  np.testing.assert_allclose(ours, np.moveaxis(expected.numpy(), 1, -1), atol=1e-4)
