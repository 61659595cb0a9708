"""The sampler on a distribution whose probability flow is known in closed form.

For data N(m, s^2) per pixel, x_t ~ N(sqrt(abar) m, abar s^2 + 1 - abar), the best prediction of the
noise is affine in x_t, and the probability flow keeps (x_t - sqrt(abar) m) / std(x_t) constant: it
maps noise z at abar = 0 to m + s z.
"""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dmpo_jax import diffusion, sampling
from dmpo_jax.errors import InputError

MEAN, SPREAD = 0.3, 0.5
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def schedule_of(prediction="epsilon", zero=False, **more):
  return diffusion.from_config(
    {
      "prediction_type": prediction,
      "rescale_betas_zero_snr": zero,
      "timestep_spacing": "trailing",
      "clip_sample": False,
      **more,
    }
  )


def gaussian(schedule, mean=MEAN, spread=SPREAD):
  """The best prediction for data N(mean, spread^2)."""
  table = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

  def predict(x, t):
    abar = table[t.astype(int)][:, None, None, None]
    gain = 1 / (abar * spread**2 + 1 - abar)
    centred = x - jnp.sqrt(abar) * mean
    x0 = mean + jnp.sqrt(abar) * spread**2 * gain * centred
    epsilon = jnp.sqrt(1 - abar) * gain * centred
    velocity = jnp.sqrt(abar) * epsilon - jnp.sqrt(1 - abar) * x0
    outputs = {"epsilon": epsilon, "sample": x0, "v_prediction": velocity}
    return outputs[schedule.prediction_type]

  return predict


def flow(schedule, noise, mean=MEAN, spread=SPREAD):
  """End of the exact probability flow from noise at the last level."""
  abar = schedule.alphas_cumprod[-1]
  z = (np.asarray(noise, np.float64) - np.sqrt(abar) * mean) / np.sqrt(abar * spread**2 + 1 - abar)
  return mean + spread * z


def noise_of(count, shape=(4, 4, 1)):
  return sampling.initial_noise(range(count), shape)


def solve(predict, schedule, noise, *, num_steps, eta=0.0, keys=None):
  """By DDIM."""
  solver = diffusion.ddim.make(schedule, num_steps, eta=eta)
  return sampling.solve(predict, solver, noise, keys=keys)


def error(schedule, num_steps):
  noise = noise_of(8)
  images = solve(gaussian(schedule), schedule, noise, num_steps=num_steps)
  return np.abs(np.asarray(images) - flow(schedule, noise)).max()


# --- the solver ---


@pytest.mark.parametrize(
  ("prediction", "zero"),
  [(p, False) for p in PREDICTIONS] + [("sample", True), ("v_prediction", True)],
)
def test_many_steps_follow_the_exact_probability_flow_of_a_gaussian(prediction, zero):
  assert error(schedule_of(prediction, zero), 1000) < 5e-3


def test_the_error_halves_when_the_steps_double():
  schedule = schedule_of("v_prediction", True, beta_schedule="scaled_linear")
  errors = [error(schedule, n) for n in (25, 50, 100)]
  np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, atol=0.4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_single_point_is_found_in_any_number_of_steps(prediction):
  schedule = schedule_of(prediction)
  predict = gaussian(schedule, mean=MEAN, spread=0.0)
  for num_steps in (1, 3):
    images = solve(predict, schedule, noise_of(2), num_steps=num_steps)
    np.testing.assert_allclose(images, MEAN, atol=1e-4)


def test_ancestral_sampling_draws_from_the_data():
  schedule = schedule_of("v_prediction", True)
  seeds = range(2000)
  images = solve(
    gaussian(schedule),
    schedule,
    sampling.initial_noise(seeds, (2, 2, 1)),
    num_steps=200,
    eta=1.0,
    keys=sampling.seed_keys(seeds),
  )
  images = np.asarray(images)
  # 8000 draws: the standard errors are 0.0056 and 0.0040; few steps shrink the spread a little.
  assert images.mean() == pytest.approx(MEAN, abs=0.02)
  assert images.std() == pytest.approx(SPREAD, abs=0.02)


def test_ancestral_sampling_forgets_the_noise_it_began_with():
  schedule = schedule_of("v_prediction", True)
  noise, keys = noise_of(500), sampling.seed_keys(range(500))
  predict = gaussian(schedule)
  images = solve(predict, schedule, noise, num_steps=50, eta=1.0, keys=keys)
  assert abs(np.corrcoef(np.ravel(images), np.ravel(noise))[0, 1]) < 0.05


SCHEDULER = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "clip_sample": True,
}


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm_solver_pp_2m"])
def test_the_sampler_takes_the_steps_of_diffusers(name):
  scheduler = getattr(diffusers, diffusion.CLASSES[name]).from_config(SCHEDULER)
  noise, solver = noise_of(3), diffusion.make_solver(SCHEDULER, 9, name=name)
  ours = sampling.solve(lambda x, t: jnp.sin(3 * x) + t[0] / 1000, solver, noise)
  scheduler.set_timesteps(9)
  x = torch.from_numpy(np.array(noise)) * scheduler.init_noise_sigma
  for t in scheduler.timesteps:
    output = torch.sin(3 * scheduler.scale_model_input(x, t)) + t / 1000
    x = scheduler.step(output, t, x).prev_sample
  np.testing.assert_allclose(ours, x.numpy(), atol=2e-4)


@pytest.mark.parametrize("name", diffusion.CLASSES)
def test_every_solver_draws_from_a_gaussian(name):
  config = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    **{k: v for k, v in SCHEDULER.items() if k != "clip_sample"},
  }
  seeds = range(1000)
  images = sampling.solve(
    gaussian(diffusion.from_config(config)),
    diffusion.make_solver(config, 100, name=name),
    sampling.initial_noise(seeds, (2, 2, 1)),
    keys=sampling.seed_keys(seeds),
  )
  # 4000 draws: the standard errors are 0.008 and 0.006; ancestral steps shrink the spread a little.
  assert np.mean(images) == pytest.approx(MEAN, abs=0.03)
  assert np.std(images) == pytest.approx(SPREAD, abs=0.04)


def test_looking_back_one_step_makes_few_steps_more_exact():
  schedule, noise = schedule_of("v_prediction", beta_schedule="scaled_linear"), noise_of(8)
  solver = diffusion.dpm_solver.make(schedule, 25)
  images = sampling.solve(gaussian(schedule), solver, noise)
  assert np.abs(np.asarray(images) - flow(schedule, noise)).max() < error(schedule, 25) / 4


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_the_network_sees_one_timestep_for_each_image(name):
  def predict(x, t):
    assert t.shape == (3,)
    assert t.dtype == jnp.float32
    return x

  solver = diffusion.make_solver(SCHEDULER, 2, name=name)
  assert sampling.solve(predict, solver, noise_of(3)).shape == (3, 4, 4, 1)


def test_bfloat16_predictions_leave_the_images_in_float32():
  schedule = schedule_of()
  predict = gaussian(schedule)
  images = solve(
    lambda x, t: predict(x, t).astype(jnp.bfloat16), schedule, noise_of(2), num_steps=3
  )
  assert images.dtype == jnp.float32


# --- seeds ---


def test_the_same_seed_gives_the_same_noise_bit_for_bit_in_any_batch():
  together = sampling.initial_noise([5, 6, 7, 2**32 - 1], (5, 3, 2))
  for i, seed in enumerate([5, 6, 7, 2**32 - 1]):
    np.testing.assert_array_equal(sampling.initial_noise([seed], (5, 3, 2))[0], together[i])


def test_the_same_seed_gives_the_same_noise_inside_of_jit():
  seeds = jnp.arange(4, dtype=jnp.uint32)
  jitted = jax.jit(lambda s: sampling.initial_noise(s, (5, 3, 2)))(seeds)
  np.testing.assert_array_equal(jitted, sampling.initial_noise(range(4), (5, 3, 2)))


def test_different_seeds_give_independent_standard_normal_noise():
  noise = np.asarray(sampling.initial_noise(range(200), (10, 10, 1))).reshape(200, 100)
  assert noise.mean() == pytest.approx(0, abs=0.03)
  assert noise.std() == pytest.approx(1, abs=0.02)
  assert np.abs(np.corrcoef(noise[:20])[~np.eye(20, dtype=bool)]).max() < 0.5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_same_seed_gives_the_same_image_in_any_batch(eta):
  schedule = schedule_of()

  def images(seeds):
    return solve(
      gaussian(schedule),
      schedule,
      sampling.initial_noise(seeds, (4, 4, 1)),
      num_steps=10,
      eta=eta,
      keys=sampling.seed_keys(seeds),
    )

  together = np.asarray(images([3, 1, 4, 1, 5]))
  for i, seed in enumerate([3, 1, 4, 1, 5]):
    np.testing.assert_allclose(images([seed])[0], together[i], atol=1e-5)


@pytest.mark.parametrize(
  ("seeds", "message"),
  [
    ([-1, 2], "from -1 to 2"),
    ([2**32], "expected 0 to"),
    ([0.5], "float64"),
    (3, "in a row"),
  ],
)
def test_seeds_that_cannot_be_used_are_refused(seeds, message):
  with pytest.raises(InputError, match=message):
    sampling.initial_noise(seeds, (2, 2, 1))


# --- guidance ---


def linear_network(params, x, t, context):
  """A network in which every image, timestep and caption counts."""
  caption = context.mean(axis=(1, 2))[:, None, None, None]
  return params["a"] * x + params["b"] * caption + t[:, None, None, None] / 1000


PARAMS = {"a": jnp.array(0.3), "b": jnp.array(2.0)}


def guided(context, null, scale, params=PARAMS, **options):
  network = functools.partial(linear_network, params)
  return sampling.guided(network, context, null, scale=scale, **options)


def contexts(batch=3):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.standard_normal((batch, 5, 4)), jnp.float32),
    jnp.asarray(rng.standard_normal((5, 4)), jnp.float32),
  )


def test_the_guided_prediction_combines_the_two_captions():
  context, null = contexts()
  x, t = noise_of(3), jnp.array([10, 500, 900])
  empty = jnp.stack([null] * 3)  # [B, L, D]
  expected = diffusion.guide(
    linear_network(PARAMS, x, t, empty), linear_network(PARAMS, x, t, context), 4.0
  )
  predict = guided(context, null, 4.0)
  np.testing.assert_allclose(predict(x, t), expected, atol=1e-5)


def test_a_null_context_may_be_given_for_each_image():
  context, null = contexts()
  x, t = noise_of(3), jnp.array([10, 500, 900])
  one = guided(context, null, 4.0)(x, t)
  each = guided(context, jnp.stack([null] * 3), 4.0)(x, t)
  np.testing.assert_array_equal(one, each)


@pytest.mark.parametrize(("scale", "batch"), [(3.0, 6), (1.001, 6), (1.0, 3), (0.0, 3)])
def test_guidance_costs_one_forward_on_the_doubled_batch_and_no_guidance_does_not_double(
  scale, batch
):
  seen = []

  def network(x, t, context):
    seen.append((x.shape[0], t.shape[0], context.shape[0]))
    return linear_network(PARAMS, x, t, context)

  context, null = contexts()
  predict = sampling.guided(network, context, null, scale=scale)
  predict(noise_of(3), jnp.array([1, 2, 3]))
  assert seen == [(batch, batch, batch)]


def test_the_contrast_of_the_guided_prediction_can_be_taken_back():
  context, null = contexts()
  x, t = noise_of(3), jnp.array([10, 500, 900])
  conditional, plain = guided(context, null, 1.0)(x, t), guided(context, null, 4.0)(x, t)
  found = guided(context, null, 4.0, rescale=0.7)(x, t)
  np.testing.assert_allclose(found, diffusion.rescale(plain, conditional, 0.7), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -2.0])
def test_without_guidance_the_prediction_is_the_conditional_one(scale):
  context, null = contexts()
  x, t = noise_of(3), jnp.array([10, 500, 900])
  predict = guided(context, null, scale, rescale=0.7)
  np.testing.assert_array_equal(predict(x, t), linear_network(PARAMS, x, t, context))


def test_a_whole_guided_sampler_compiles_with_the_parameters_as_an_argument():
  schedule = schedule_of("v_prediction")
  context, null = contexts()

  @jax.jit
  def sample(params, noise):
    predict = guided(context, null, 2.0, params=params)
    return solve(predict, schedule, noise, num_steps=4)

  eager = solve(guided(context, null, 2.0), schedule, noise_of(3), num_steps=4)
  np.testing.assert_allclose(sample(PARAMS, noise_of(3)), eager, atol=1e-5)


def test_a_null_context_of_another_length_is_refused():
  context, null = contexts()
  with pytest.raises(InputError, match=r"null conditioning has shape \(4, 4\)"):
    guided(context, null[:4], 2.0)


# --- bad input ---


def test_eta_above_zero_needs_keys():
  with pytest.raises(InputError, match="needs a key for each of the 2 images; there are none"):
    solve(gaussian(schedule_of()), schedule_of(), noise_of(2), num_steps=2, eta=0.5)


def test_eta_above_zero_needs_a_key_for_each_image():
  keys = sampling.seed_keys([1])
  with pytest.raises(InputError, match=r"for each of the 2 images; their shape is \(1,\)"):
    solve(gaussian(schedule_of()), schedule_of(), noise_of(2), num_steps=2, eta=0.5, keys=keys)


def test_a_prediction_of_another_shape_is_refused():
  with pytest.raises(InputError, match=r"prediction \(2, 4, 4, 2\)"):
    solve(lambda x, t: jnp.concatenate([x, x], axis=-1), schedule_of(), noise_of(2), num_steps=2)
