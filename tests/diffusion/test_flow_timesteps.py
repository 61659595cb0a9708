"""Samplers of noise levels of flow matching against their densities."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from dmpo_jax.diffusion import flow_timesteps
from dmpo_jax.errors import InputError

COUNT = 20_000
SAMPLERS = [
  {"name": "uniform"},
  {"name": "logit_normal"},
  {"name": "logit_normal", "mean": 0.7, "std": 0.5},
  {"name": "mode"},
  {"name": "mode", "scale": -0.8},
  {"name": "interval", "low": 0.2, "high": 0.8},
]


def times(section, shift=1.0, count=COUNT, seed=0):
  sampler = flow_timesteps.make(section, shift)
  keys = jax.random.split(jax.random.key(seed), count)
  return np.asarray(jax.jit(sampler)(jax.random.key(seed + 1), keys))


def logit(t):
  return np.log(t) - np.log1p(-t)


def distribution(section):
  """P(time <= t) as a function of t."""
  name = section["name"]
  if name == "logit_normal":
    mean, std = section.get("mean", 0.0), section.get("std", 1.0)
    return lambda t: scipy.stats.norm.cdf((logit(t) - mean) / std)
  if name == "interval":
    return lambda t: np.clip((t - 0.2) / 0.6, 0, 1)
  if name == "mode":
    scale = section.get("scale", 1.29)
    u = np.linspace(0, 1, 100_001)
    quantile = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    return lambda t: np.interp(t, quantile[::-1], 1 - u[::-1])
  return lambda t: t


@pytest.mark.parametrize("section", SAMPLERS, ids=str)
def test_times_follow_the_density(section):
  found = times(section)
  assert found.dtype == np.float32
  # Below this the Kolmogorov-Smirnov statistic lies in all but one of 1000 samples.
  assert scipy.stats.kstest(found, distribution(section)).statistic < 1.95 / math.sqrt(COUNT)


@pytest.mark.parametrize("section", SAMPLERS, ids=str)
def test_stratified_times_have_one_in_each_part_of_equal_probability(section):
  found = distribution(section)(np.sort(times({**section, "stratified": True}, count=64)))
  np.testing.assert_array_equal(np.floor(np.clip(found, 0, 1 - 1e-9) * 64 + 1e-3), np.arange(64))


def test_stratified_is_uniform_stratified():
  one, other = ({"name": "stratified"}, {"name": "uniform", "stratified": True})
  np.testing.assert_array_equal(times(one, count=16), times(other, count=16))


def test_stratified_times_are_in_random_order():
  found = times({"name": "stratified"}, count=64)
  assert abs(np.corrcoef(found, np.arange(64))[0, 1]) < 0.4


@pytest.mark.parametrize("section", SAMPLERS[:4], ids=str)
def test_the_schedulers_shift_moves_times_and_a_shift_of_the_config_replaces_it(section):
  plain, moved = times(section, count=50), times(section, shift=3.0, count=50)
  np.testing.assert_allclose(moved, 3 * plain / (1 + 2 * plain), rtol=1e-5)
  np.testing.assert_array_equal(times({**section, "shift": 1.0}, shift=3.0, count=50), plain)
  np.testing.assert_array_equal(times({**section, "shift": 3.0}, count=50), moved)


def test_a_list_is_sampled_evenly_and_not_shifted():
  found = times({"name": "list", "values": [0.801, 0.694, 0.548, 0.338]}, shift=3.0)
  values, counts = np.unique(found, return_counts=True)
  np.testing.assert_allclose(values, [0.338, 0.548, 0.694, 0.801])
  np.testing.assert_allclose(counts / COUNT, 0.25, atol=0.02)


def test_a_stratified_list_takes_each_value_equally_often():
  section = {"name": "list", "values": [0.9, 0.5, 0.1], "stratified": True}
  _, counts = np.unique(times(section, count=12), return_counts=True)
  np.testing.assert_array_equal(counts, [4, 4, 4])


def test_an_examples_time_depends_on_its_key_alone():
  sampler = jax.jit(flow_timesteps.make({"name": "logit_normal"}, 3.0))
  keys = jax.random.split(jax.random.key(0), 6)
  whole = sampler(jax.random.key(1), keys)
  np.testing.assert_array_equal(sampler(jax.random.key(2), keys[2:4]), whole[2:4])


def test_a_shift_moves_towards_noise_and_its_inverse_back():
  t = np.linspace(0, 1, 11)
  moved = flow_timesteps.shifted(t, 3.0)
  assert np.all(moved[1:-1] > t[1:-1])
  np.testing.assert_allclose(flow_timesteps.shifted(moved, 1 / 3), t, atol=1e-12)


def test_the_extremes_of_the_uniform_number_give_times_between_0_and_1():
  u = np.float32([0, 2.0**-24, 1 - 2.0**-24])
  for quantile in (
    lambda u: flow_timesteps.logit_normal(u, mean=0.0, std=1.0),
    lambda u: flow_timesteps.mode(u, scale=flow_timesteps.LARGEST_MODE),
  ):
    found = np.asarray(quantile(u))
    assert np.all(np.isfinite(found))
    assert np.all((found >= 0) & (found <= 1))


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"name": "logit-normal"}, "unknown timestep sampler 'logit-normal'; did you mean 'logit_no"),
    ({"name": "uniform", "shfit": 3.0}, "'shfit'; did you mean 'shift'"),
    ({"name": "uniform", "shift": 0}, "shift is 0; expected a number from 0.0001"),
    ({"name": "uniform", "shift": float("nan")}, "shift is nan"),
    ({"name": "uniform", "stratified": "yes"}, "stratified must be True or False, got 'yes'"),
    ({"name": "logit_normal", "std": 0}, "std is 0; expected a number > 0"),
    ({"name": "logit_normal", "mean": 400}, "mean is 400; expected a number from -15 to 15"),
    ({"name": "mode", "scale": 2}, "scale is 2; expected a number from -1 to 1.752"),
    ({"name": "interval", "low": 200, "high": 800}, "noise levels with 0 <= low < high <= 1"),
    ({"name": "interval", "low": 0.5, "high": 0.5}, "noise levels with 0 <= low < high <= 1"),
    ({"name": "list", "values": [801, 694]}, "noise levels from 0 to 1 .a timestep of 1000"),
    ({"name": "list", "values": []}, "one or more noise levels"),
    ({"name": "list", "values": 0.5}, "values must be a tuple"),
    ({"name": "logit_normal", "mean": 10**400}, "mean is 1000"),
    ({"name": "list", "values": [0.5], "shift": 3.0}, "unknown key of timestep sampler 'list'"),
  ],
)
def test_a_sampler_that_is_not_offered_is_refused_by_name(section, message):
  with pytest.raises(InputError, match=message):
    flow_timesteps.make(section, 1.0)


def test_a_scheduler_that_shifts_by_size_needs_a_shift_for_training():
  with pytest.raises(InputError, match=r"config\.timesteps\.shift"):
    flow_timesteps.make({"name": "uniform"}, None)
  flow_timesteps.make({"name": "uniform", "shift": 3.0}, None)
  flow_timesteps.make({"name": "list", "values": [0.5]}, None)
