"""The process of flow matching, its weights and its exact relations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax.diffusion import FlowProcess, flow_config
from dmpo_jax.errors import InputError

PROCESS = FlowProcess()


@pytest.fixture
def sample():
  rng = np.random.default_rng(0)
  x0, noise, predicted = rng.standard_normal((3, 5, 4, 3, 2)).astype(np.float32)
  return x0, noise, predicted, np.float32([0, 0.1, 0.5, 0.9, 1])


def per_image(t):
  return np.float64(t).reshape(-1, 1, 1, 1)


def squares(x):
  return np.square(np.float64(x)).sum(axis=(1, 2, 3))


def test_a_noised_sample_lies_on_the_line_from_data_to_noise(sample):
  x0, noise, _, t = sample
  found = PROCESS.add_noise(x0, noise, t)
  np.testing.assert_allclose(found, (1 - per_image(t)) * x0 + per_image(t) * noise, atol=1e-6)
  np.testing.assert_array_equal(found[0], x0[0])
  np.testing.assert_array_equal(found[-1], noise[-1])


def test_one_time_serves_all_samples(sample):
  x0, noise, _, _ = sample
  one = PROCESS.add_noise(x0, noise, jnp.float32(0.3))
  np.testing.assert_array_equal(one, PROCESS.add_noise(x0, noise, jnp.full(5, 0.3)))


def test_the_target_is_the_derivative_of_the_noised_sample(sample):
  x0, noise, _, t = sample
  _, derivative = jax.jvp(
    lambda t: PROCESS.add_noise(x0, noise, t), (jnp.float32(0.4),), (jnp.float32(1),)
  )
  np.testing.assert_allclose(PROCESS.target(x0, noise, t), derivative, atol=1e-6)


def test_the_true_velocity_implies_the_clean_sample_and_the_noise(sample):
  x0, noise, _, t = sample
  x_t, velocity = PROCESS.add_noise(x0, noise, t), PROCESS.target(x0, noise, t)
  np.testing.assert_allclose(PROCESS.to_x0(velocity, x_t, t), x0, atol=1e-6)
  np.testing.assert_allclose(PROCESS.to_epsilon(velocity, x_t, t), noise, atol=1e-6)


def test_the_error_of_the_noise_is_the_velocitys_with_the_weight_epsilon(sample):
  x0, noise, predicted, t = sample
  x_t = PROCESS.add_noise(x0, noise, t)
  error = squares(PROCESS.to_epsilon(predicted, x_t, t) - noise)
  weights = PROCESS.weights({"name": "epsilon"})(t)
  np.testing.assert_allclose(
    error, weights * squares(predicted - (noise - x0)), rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(weights, np.square(1 - np.float64(t)), rtol=1e-6)


def test_the_error_of_the_clean_sample_is_the_velocitys_with_the_weight_x0(sample):
  x0, noise, predicted, t = sample
  x_t = PROCESS.add_noise(x0, noise, t)
  error = squares(PROCESS.to_x0(predicted, x_t, t) - x0)
  weights = PROCESS.weights({"name": "x0"})(t)
  np.testing.assert_allclose(
    error, weights * squares(predicted - (noise - x0)), rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(weights, np.square(np.float64(t)), rtol=1e-6)


def test_min_snr_weights_the_error_of_the_clean_sample_by_the_capped_ratio(sample):
  t = sample[3]
  weights = PROCESS.weights({"name": "min_snr", "gamma": 5.0})(t)
  ratio = np.square((1 - np.float64(t[1:])) / t[1:])
  np.testing.assert_allclose(weights[1:], np.minimum(ratio, 5) * np.float64(t[1:]) ** 2, rtol=1e-5)
  assert weights[0] == 0


@pytest.mark.parametrize("name", ["none", "velocity"])
def test_errors_of_the_velocity_have_no_weight(name):
  assert PROCESS.weights({"name": name}) is None


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"name": "x_0"}, "unknown timestep weight 'x_0'; did you mean 'x0'"),
    ({"name": "min_snr"}, "needs the key 'gamma'"),
    ({"name": "min_snr", "gamma": float("nan")}, "gamma of timestep weight 'min_snr'"),
    ({"name": "min_snr", "gamma": 0}, r"must be a number in \[1e-06, 1e\+06\], got 0"),
    ({"name": "epsilon", "gamma": 5}, "unknown key of timestep weight 'epsilon': 'gamma'"),
  ],
)
def test_a_weight_that_is_not_offered_is_refused_by_name(section, message):
  with pytest.raises(InputError, match=message):
    PROCESS.weights(section)


def test_the_signal_to_noise_ratio_is_that_of_powers():
  t = np.float32([0.1, 0.5, 0.75, 1])
  np.testing.assert_allclose(PROCESS.snr(t), [81, 1, 1 / 9, 0], rtol=1e-5)
  assert np.isinf(PROCESS.snr(jnp.float32(0)))


def test_a_time_outside_of_the_line_gives_nan(sample):
  x0, noise, _, _ = sample
  t = np.float32([-0.1, 1.1, 500, 0.5, np.nan])
  found = np.isnan(PROCESS.add_noise(x0, noise, t)).all(axis=(1, 2, 3))
  np.testing.assert_array_equal(found, [True, True, True, False, True])


def test_integer_timesteps_are_refused(sample):
  x0, noise, _, _ = sample
  with pytest.raises(InputError, match="int32; flow matching expects floats"):
    PROCESS.add_noise(x0, noise, np.arange(5, dtype=np.int32))


@pytest.mark.parametrize("method", ["add_noise", "target", "to_x0", "to_epsilon"])
def test_arrays_of_other_shapes_are_refused(method, sample):
  x0, noise, _, t = sample
  with pytest.raises(InputError, match="expected the same shape"):
    getattr(PROCESS, method)(x0, noise[:, :-1], t)


def test_a_time_for_another_number_of_samples_is_refused(sample):
  with pytest.raises(InputError, match=r"times have shape \(4,\)"):
    PROCESS.add_noise(sample[0], sample[1], np.full(4, 0.5, np.float32))


def test_bins_are_equal_ranges_of_noise_levels_and_times_fall_into_them():
  edges = PROCESS.bins(5)
  np.testing.assert_allclose(edges, [0, 0.2, 0.4, 0.6, 0.8, 1], atol=1e-7)
  keys = jax.random.split(jax.random.key(0), 500)
  times = jax.vmap(lambda key: PROCESS.sample_between(key, edges[1], edges[2]))(keys)
  assert times.dtype == np.float32
  assert 0.2 <= times.min() < 0.205
  assert 0.395 < times.max() <= 0.4


def test_mixed_precision_keeps_the_line_in_float32(sample):
  x0, noise, _, t = sample
  assert PROCESS.add_noise(x0.astype(jnp.bfloat16), noise, t).dtype == np.float32


def test_the_process_of_a_file_has_its_shift():
  config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
  process = flow_config.from_config(config)
  assert (process.shift, process.num_timesteps) == (3.0, 1000)
  dynamic = flow_config.from_config({**config, "use_dynamic_shifting": True})
  assert dynamic.shift is None
