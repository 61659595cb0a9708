"""The train step: its random quantities, its loss, its optimizer, its sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmpo_jax import losses
from dmpo_jax.parallel import sharding
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, sample_noise, sample_timesteps
from dmpo_jax.training.objective import pair_up
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import (
  compile_step,
  initial_state,
  make_step,
  sharded_initial_state,
)
from tests.training.tiny import pairs_config

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def setting(pipeline):
  """Objective, parameters and a batch of eight pairs, at beta 5000."""
  config = pairs_config(pipeline)
  config.loss.beta = 5000.0
  loaded = setup.load_pipeline(config, [])
  objective = setup.make_objective(config, loaded)
  examples = setup.load_examples(config)
  text, _ = objective.pipeline.tokenize(examples.captions[:8])
  batch = Batch(text, examples.ids[:8], pixels=examples.images[:8])
  trained = {"unet": loaded.params["unet"]}
  frozen = {"text_encoder": loaded.params["text_encoder"]}
  return objective, trained, frozen, batch


@pytest.fixture(scope="module")
def evaluate(setting):
  """The compiled objective: (trained, reference, batch) -> (losses, metrics)."""
  objective, _, frozen, _ = setting
  return jax.jit(lambda trained, reference, batch: objective(trained, frozen, reference, batch, 3))


def _uniform(step_key, keys):
  return jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys)


def _sample(step, ids, dropout, seed=0):
  step, batch = jnp.int32(step), Batch({}, jnp.asarray(ids, jnp.uint32))
  t = sample_timesteps(seed, step, batch, _uniform)
  return sample_noise(seed, step, batch._replace(timesteps=t), SHAPE, dropout)


def test_timesteps_noise_and_dropout_do_not_depend_on_the_place_in_the_batch():
  one, other = (_sample(5, ids, 0.5) for ids in ([3, 9, 4], [4, 3, 7]))
  np.testing.assert_array_equal(one.noise[0], other.noise[1])
  np.testing.assert_array_equal(one.timesteps[2], other.timesteps[0])
  np.testing.assert_array_equal(one.dropped[0], other.dropped[1])


def test_noise_differs_between_steps_examples_and_seeds():
  base = _sample(5, [3, 4], 0.0).noise
  assert not np.array_equal(base[0], base[1])
  assert not np.array_equal(base, _sample(6, [3, 4], 0.0).noise)
  assert not np.array_equal(base, _sample(5, [3, 4], 0.0, seed=1).noise)


def test_noise_is_standard_normal_and_captions_are_dropped_at_the_rate():
  sample = _sample(0, range(4000), 0.2)
  assert abs(float(sample.noise.mean())) < 0.01
  assert abs(float(sample.noise.std()) - 1) < 0.01
  assert abs(float(sample.dropped.mean()) - 0.2) < 0.03


def test_both_images_of_a_pair_share_timestep_noise_and_caption(setting, evaluate):
  _, trained, _, batch = setting
  twins = batch._replace(pixels=np.repeat(batch.pixels[:, :1], 2, axis=1))
  _, metrics = evaluate(trained, trained, twins)
  np.testing.assert_allclose(metrics["policy_w"], metrics["policy_l"], rtol=1e-6)


def test_at_step_zero_the_logit_vanishes_at_beta_5000(setting, evaluate):
  _, trained, _, batch = setting
  _, metrics = evaluate(trained, trained, batch)
  assert np.abs(metrics["logit"]).max() < 1e-3


def test_the_errors_are_those_of_the_network_on_noisy_images(setting, evaluate):
  objective, trained, frozen, batch = setting
  _, metrics = evaluate(trained, trained, batch)
  batch = objective.prepare(batch, 3)
  sample = sample_noise(objective.seed, 3, batch, SHAPE, objective.caption_dropout)
  i = int(np.flatnonzero(~np.asarray(sample.dropped))[0])
  t, noise = int(sample.timesteps[i]), np.asarray(sample.noise[i], np.float64)
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  abar = np.cumprod(1 - betas)[t]
  for column, name in enumerate(["policy_w", "policy_l"]):
    noisy = np.sqrt(abar) * batch.pixels[i, column] + np.sqrt(1 - abar) * noise
    text = objective.pipeline.encode_text(frozen, {k: x[i : i + 1] for k, x in batch.text.items()})
    prediction = objective.pipeline.denoise(
      trained, jnp.asarray(noisy, jnp.float32)[None], jnp.array([t]), text
    )
    expected = np.mean((np.asarray(prediction[0], np.float64) - noise) ** 2)
    np.testing.assert_allclose(metrics[name][i], expected, rtol=1e-4)


def test_no_gradient_reaches_the_reference(setting):
  objective, trained, frozen, batch = setting

  def total(reference):
    return jnp.sum(objective(trained, frozen, reference, batch, 0)[0])

  gradient = jax.jit(jax.grad(total))(trained)
  assert all(np.all(x == 0) for x in jax.tree.leaves(gradient))


def test_a_loss_that_needs_a_reference_says_so_without_one(setting):
  objective, trained, frozen, batch = setting
  with pytest.raises(ValueError, match="reference_w"):
    jax.eval_shape(lambda: objective(trained, frozen, None, batch, 0))


def test_a_dropped_caption_is_the_empty_one(setting):
  objective, trained, frozen, batch = setting
  always = objective._replace(caption_dropout=1.0)
  null = batch._replace(text={k: np.tile(x, (8, 1)) for k, x in objective.null_text.items()})
  run = jax.jit(lambda batch: always(trained, frozen, trained, batch, 0)[1]["policy_w"])
  np.testing.assert_array_equal(run(batch), run(null))


def test_one_step_is_adamw_on_the_mean_loss_with_clipping(setting):
  objective, trained, frozen, batch = setting
  # The preferred image's error alone, for in the difference of two most digits of a gradient
  # cancel; and an eps of the gradients' own size, or rounding decides the sign of those next to
  # nothing.
  objective = objective._replace(loss=losses.sft)
  options = {
    "name": "adamw",
    "moment_dtype": "float32",
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-3,
  }
  optimizer = make_optimizer({**options, "weight_decay": 0.1, "clip_norm": 0.5})
  state = initial_state(trained, optimizer, ema=True)

  def mean_loss(params):
    return jnp.mean(objective(params, frozen, trained, batch, jnp.int32(0))[0])

  gradient = jax.jit(jax.grad(mean_loss))(trained)
  step = jax.jit(make_step(objective, optimizer, ema_decay=0.9))
  after, metrics, example_losses = step(state, frozen, trained, batch)

  leaves = jax.tree.leaves(gradient)
  norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in leaves))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
  np.testing.assert_allclose(metrics["loss"], np.mean(example_losses), rtol=1e-6)
  for g, old, new, ema in zip(
    leaves, *(jax.tree.leaves(x) for x in (trained, after.params, after.ema)), strict=True
  ):
    g = np.float64(g) * min(1, 0.5 / norm)
    update = g / (np.abs(g) + 1e-3) + 0.1 * old  # the first step of Adam, bias-corrected
    np.testing.assert_allclose(new, old - 1e-3 * update, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ema, 0.1 * old + 0.9 * np.asarray(new), rtol=1e-4, atol=1e-7)
  assert int(after.step) == 1


def test_the_rate_warms_up_from_zero_to_a_constant():
  options = {
    "name": "adamw",
    "moment_dtype": None,
    "learning_rate": 1.0,
    "warmup_steps": 4,
    "b1": 0.0,
    "b2": 0.0,
    "eps": 0.0,
  }
  optimizer = make_optimizer({**options, "weight_decay": 0.0, "clip_norm": 1e9})
  params, sizes = {"w": jnp.ones(())}, []
  state = optimizer.init(params)
  for _ in range(6):
    updates, state = optimizer.update({"w": jnp.full((), 3.0)}, state, params)
    sizes.append(-float(updates["w"]))
  np.testing.assert_allclose(sizes, [0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def on_mesh(setting, pipeline):
  """(data, fsdp, microbatches, slices) -> gradient, loss, losses and state after a step of SGD."""
  _, trained, frozen, batch = setting
  # Beta multiplies rounding, and policy = reference is where nothing else is left of the logit.
  loss = functools.partial(losses.dmpo, beta=50.0, alpha=0.01)
  optimizer = optax.sgd(1.0)  # its update is the gradient

  def run(data, fsdp, microbatches, slices=1):
    mesh = sharding.make_mesh(data * fsdp, fsdp=fsdp, slices=slices)
    config = pairs_config(pipeline)
    objective = setup.make_objective(config, setup.load_pipeline(config, []), mesh=mesh)
    step = make_step(
      objective._replace(loss=loss),
      optimizer,
      ema_decay=0.0,
      grad_accumulation_steps=microbatches,
      constrain=functools.partial(sharding.constrain, mesh),
    )
    with jax.set_mesh(mesh):
      state = sharded_initial_state(trained, optimizer, mesh, ema=False)
      inputs = [jax.device_put(x, sharding.shardings(mesh, x)) for x in (frozen, trained)]
      compiled = compile_step(step, mesh, state, *inputs)
      after, metrics, example_losses = compiled(state, *inputs, batch)
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - b, jax.device_get(after.params), trained)
    return gradient, float(metrics["loss"]), np.asarray(example_losses), after

  return run


@pytest.fixture(scope="module")
def on_one_device(on_mesh):
  return on_mesh(1, 1, 1)


@pytest.mark.parametrize(
  ("data", "fsdp", "microbatches", "slices"), [(4, 1, 1, 1), (1, 4, 1, 1), (2, 2, 2, 2)]
)
def test_a_step_is_the_same_on_every_mesh_and_with_gradient_accumulation(
  data, fsdp, microbatches, slices, on_mesh, on_one_device, monkeypatch
):
  monkeypatch.setattr(sharding, "SMALLEST", 8)
  grads, loss, example_losses, _ = on_one_device
  other_grads, other_loss, other_losses, state = on_mesh(data, fsdp, microbatches, slices)
  np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
  np.testing.assert_allclose(other_losses, example_losses, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
    np.testing.assert_allclose(b, a, atol=5e-4 * np.abs(a).max() + 1e-7)
  sizes = [x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(state.params)]
  assert min(sizes) == 1 / fsdp


def test_single_images_have_no_loser():
  errors = pair_up(losses.PairErrors, jnp.ones((3, 1)), None)
  assert errors == losses.PairErrors(errors.policy_w, None, None, None)
  np.testing.assert_array_equal(errors.policy_w, np.ones(3))
