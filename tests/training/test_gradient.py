"""Gradient accumulation, timestep weights, label flips and optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers.optimization import Adafactor

from dmpo_jax import data, losses
from dmpo_jax.configs import digits_dpo
from dmpo_jax.training import gradient, setup
from dmpo_jax.training.batch import Batch, flipped_labels
from dmpo_jax.training.optimizer import make_optimizer
from tests.training.tiny import smallest_config

LABEL = np.array([1, 0.5, 0, 0.25, 1, 0.75, 0.5, 0.9], np.float32)
WEIGHT = np.array([1, 2, 0.5, 0, 1, 3, 1, 0.25], np.float32)
LOSSES = {
  "dmpo": functools.partial(losses.dmpo, beta=500.0, alpha=0.01),
  "kto": functools.partial(losses.kto, beta=500.0),
  "automatic beta": losses.control(
    functools.partial(losses.dpo, beta=500.0), auto_gradient_factor=0.2, sft_weight=0.1
  ),
  "anchor": losses.control(functools.partial(losses.dpo, beta=500.0), anchor_weight=5.0),
  "dspo": functools.partial(losses.dspo, beta=0.5),
  "mapo": functools.partial(losses.mapo, beta=0.1, snr=0.5, num_timesteps=1000),
}


def denoise(params, x_t, t, conditioning):
  """A network that is not linear in its parameters, and different for each timestep."""
  scale, slope = (params["unet"][name][None] for name in ("scale", "slope"))
  return scale * jnp.tanh(x_t * slope + (t / 1000)[:, None, None, None])


@pytest.fixture(scope="module")
def setting():
  """An objective over that network, policy, frozen, reference, and eight pairs."""
  pipeline = setup.load_pipeline(smallest_config(), ["the digit seven"])
  objective = setup.make_objective(digits_dpo.get_config(), pipeline)
  objective = objective._replace(pipeline=objective.pipeline._replace(denoise=denoise))
  rng = np.random.default_rng(0)
  policy = {"unet": {k: rng.normal(size=(8, 8, 1)).astype("f") for k in ("scale", "slope")}}
  # Noise makes the reference the worse one, or the mean that KTO takes would be cut off at 0.
  reference = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), policy)
  frozen = {"text_encoder": pipeline.params["text_encoder"]}
  pairs = data.DATASETS["digit_pairs"](num_pairs=8, temperature=0.03, seed=1)
  text, _ = objective.pipeline.tokenize(pairs.captions)
  return objective, policy, frozen, reference, Batch(text, pairs.ids, pixels=pairs.images)


def gradient_of(setting, name, microbatches, **fields):
  """Gradient and metrics of the batch."""
  objective, policy, frozen, reference, batch = setting
  objective = objective._replace(loss=LOSSES[name])
  run = (
    gradient.full_batch(objective)
    if microbatches == 1
    else gradient.accumulated(objective, microbatches, lambda tree: tree)
  )
  if not losses.requirements(LOSSES[name]).reference:
    reference = None
  return jax.jit(run)(policy, frozen, reference, batch._replace(**fields), jnp.int32(3))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_microbatches_give_the_gradient_and_the_metrics_of_the_full_batch(name, setting):
  fields = {"weight": WEIGHT} | ({"label": LABEL} if name not in ("dspo", "mapo") else {})
  (one, metrics), (four, accumulated) = (gradient_of(setting, name, p, **fields) for p in (1, 4))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())
  assert metrics.keys() == accumulated.keys()
  for metric in metrics:
    np.testing.assert_allclose(accumulated[metric], metrics[metric], rtol=1e-5, atol=1e-5)


def test_the_mean_over_a_microbatch_alone_would_give_another_gradient(setting):
  objective, policy, frozen, reference, batch = setting
  objective = objective._replace(loss=LOSSES["kto"])
  each = [jax.tree.map(lambda x, p=p: x[p::4], batch) for p in range(4)]
  run = jax.jit(gradient.full_batch(objective))
  naive = [run(policy, frozen, reference, part, jnp.int32(3))[0] for part in each]
  naive = jax.tree.map(lambda *g: sum(g) / 4, *naive)
  exact, _ = gradient_of(setting, "kto", 1)
  gap = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(a).max(), exact, naive)
  assert max(jax.tree.leaves(gap)) > 1e-2


def test_a_loss_of_means_and_residuals_is_refused_with_microbatches(setting):
  base = functools.partial(losses.kto, beta=500.0)
  objective = setting[0]._replace(loss=functools.partial(losses.sdpo, base=base, mu=0.9))
  with pytest.raises(ValueError, match="grad_accumulation_steps=1"):
    gradient.accumulated(objective, 2, lambda tree: tree)


def test_join_is_the_inverse_of_split():
  x = np.arange(24).reshape(12, 2)
  assert gradient.split(x, 3).shape == (3, 4, 2)
  np.testing.assert_array_equal(gradient.split(x, 3)[1], x[1::3])
  np.testing.assert_array_equal(gradient.join(gradient.split(x, 3)), x)


def test_timestep_weights_multiply_the_errors_and_not_the_logged_ones(setting):
  objective, policy, frozen, reference, batch = setting
  step = jnp.int32(3)
  heavy = objective._replace(loss=LOSSES["dmpo"], weights=lambda t: 1.0 + t / 500)
  batch = heavy.prepare(batch, step)
  plain, _ = heavy.evaluate(policy, frozen, reference, batch, step)
  loss, logged = heavy.loss_of(batch, plain, None)
  weights = 1 + np.asarray(batch.timesteps) / 500
  expected, _ = LOSSES["dmpo"](jax.tree.map(lambda e: np.float32(weights) * e, plain))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_array_equal(logged["policy_w"], plain.policy_w)


def test_weighted_residuals_have_the_weighted_errors_as_their_mean_squares(setting):
  objective, policy, frozen, reference, batch = setting
  inputs = []

  def loss(errors, residuals):
    inputs.append((errors.policy_w, jnp.mean(jnp.square(residuals.policy_w), (1, 2, 3))))
    return losses.sft(errors)

  loss.requirements = losses.Requirements(residuals=True)
  objective = objective._replace(loss=loss, weights=lambda t: 1.0 + t / 500)
  objective(policy, frozen, reference, batch, jnp.int32(3))
  np.testing.assert_allclose(*inputs[0], rtol=1e-5)


def test_label_flips_swap_the_images_of_the_same_pairs_in_every_step(setting):
  objective, *_, batch = setting
  batch = batch._replace(example_id=np.arange(8, dtype=np.uint32) + 100)
  noisy = objective._replace(label_flip_rate=0.4)
  flipped = np.asarray(flipped_labels(objective.seed, batch, 0.4))
  assert 0 < flipped.sum() < 8
  for step in (0, 7):
    pixels = noisy.prepare(batch, jnp.int32(step)).pixels
    for i in range(8):
      np.testing.assert_array_equal(
        pixels[i], batch.pixels[i][::-1] if flipped[i] else batch.pixels[i]
      )


def test_label_flips_swap_cached_latents_too(setting):
  ids = np.arange(8, dtype=np.uint32) + 100
  latents = np.random.default_rng(0).normal(size=(8, 2, 2, 4, 4, 1)).astype(np.float32)
  batch = setting[4]._replace(example_id=ids, pixels=None, latents=latents)
  objective = setting[0]._replace(label_flip_rate=0.4)
  flipped = np.asarray(flipped_labels(objective.seed, batch, 0.4))
  swapped = objective.prepare(batch, jnp.int32(0)).latents
  for i in range(8):
    np.testing.assert_array_equal(swapped[i], latents[i][::-1] if flipped[i] else latents[i])


def test_labels_are_flipped_at_the_rate_independently_of_the_place_in_the_batch():
  batch = Batch({}, np.arange(4000, dtype=np.uint32))
  flipped = np.asarray(flipped_labels(0, batch, 0.3))
  assert abs(flipped.mean() - 0.3) < 0.03
  back = batch._replace(example_id=batch.example_id[::-1])
  np.testing.assert_array_equal(np.asarray(flipped_labels(0, back, 0.3))[::-1], flipped)


def test_adafactor_is_that_of_transformers_without_relative_step():
  rng = np.random.default_rng(0)
  shapes = {"wide": (130, 140), "vector": (7,)}
  start_at = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  options = {"name": "adafactor", "learning_rate": 0.03, "weight_decay": 0.1, "warmup_steps": 0}
  ours = make_optimizer({**options, "clip_norm": 1e9})
  theirs = {k: torch.nn.Parameter(torch.from_numpy(v.copy())) for k, v in start_at.items()}
  torchs = Adafactor(
    theirs.values(), lr=0.03, weight_decay=0.1, scale_parameter=False, relative_step=False
  )
  params, state = start_at, ours.init(start_at)
  assert max(x.size for x in jax.tree.leaves(state)) < 200  # factored second moments
  for _ in range(3):
    grads = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    updates, state = ours.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for k, p in theirs.items():
      p.grad = torch.from_numpy(grads[k])
    torchs.step()
  for k, p in theirs.items():
    np.testing.assert_allclose(params[k], p.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_adamw_can_keep_first_moments_in_bfloat16():
  options = dict(digits_dpo.get_config().optimizer) | {"moment_dtype": "bfloat16"}
  kinds = {x.dtype.name for x in jax.tree.leaves(make_optimizer(options).init({"w": jnp.ones(3)}))}
  assert kinds == {"bfloat16", "float32", "int32"}
