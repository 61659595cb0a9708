"""Timestep samplers: their distributions, bounds, strata, and what a draw depends on."""

import jax
import numpy as np
import pytest
from scipy import stats

from dmpo_jax.diffusion import timesteps
from dmpo_jax.errors import InputError

T = 50
SAMPLERS = {
  "uniform": {"name": "uniform"},
  "interval": {"name": "interval", "low": 10, "high": 37},
  "list": {"name": "list", "values": [4, 9, 9, 30]},
}
EXPECTED = {
  "uniform": np.full(T, 1 / T),
  "interval": np.where((np.arange(T) >= 10) & (np.arange(T) < 37), 1 / 27, 0),
  "list": np.bincount([4, 9, 9, 30], minlength=T) / 4,
}


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def p_value(draws, probabilities):
  """p-value of a chi-square test of samples against probabilities; impossible samples give 0."""
  counts = np.bincount(np.asarray(draws), minlength=len(probabilities))
  possible = probabilities > 0
  assert counts[~possible].sum() == 0
  return stats.chisquare(counts[possible], probabilities[possible] * counts.sum()).pvalue


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_follow_the_stated_distribution(name):
  draw = timesteps.make(SAMPLERS[name], T)
  assert p_value(draw(jax.random.key(1), keys(20_000)), EXPECTED[name]) > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_permuting_the_examples_permutes_the_draws(name):
  draw = timesteps.make(SAMPLERS[name], T)
  order = np.random.default_rng(0).permutation(64)
  drawn = np.asarray(draw(jax.random.key(1), keys(64)))
  np.testing.assert_array_equal(draw(jax.random.key(1), keys(64)[order]), drawn[order])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_part_of_the_batch_gets_the_draws_it_gets_within_the_whole(name):
  draw = timesteps.make(SAMPLERS[name], T)
  drawn = np.asarray(draw(jax.random.key(1), keys(64)))
  np.testing.assert_array_equal(draw(jax.random.key(1), keys(64)[20:31]), drawn[20:31])


@pytest.mark.parametrize("name", [*SAMPLERS, "stratified"])
def test_draws_are_int32_and_repeat_for_the_same_keys(name):
  draw = timesteps.make(SAMPLERS.get(name, {"name": name}), T)
  once = draw(jax.random.key(1), keys(64))
  assert once.dtype == np.int32
  assert once.shape == (64,)
  np.testing.assert_array_equal(jax.jit(draw)(jax.random.key(1), keys(64)), once)


@pytest.mark.parametrize("name", [*SAMPLERS, "stratified"])
def test_other_keys_give_other_draws(name):
  draw = timesteps.make(SAMPLERS.get(name, {"name": name}), T)
  once, again = draw(jax.random.key(1), keys(64)), draw(jax.random.key(2), keys(64, seed=2))
  assert np.any(np.asarray(once) != np.asarray(again))


def test_an_interval_reaches_both_of_its_ends():
  drawn = np.asarray(timesteps.interval(keys(300), 7, 12))
  assert set(drawn.tolist()) == {7, 8, 9, 10, 11}


@pytest.mark.parametrize(("batch", "total"), [(10, 50), (50, 50), (25, 1000), (1, 50)])
def test_stratified_draws_have_exactly_one_in_each_stratum(batch, total):
  for seed in range(20):
    drawn = np.asarray(timesteps.stratified(jax.random.key(seed), batch, total))
    np.testing.assert_array_equal(np.sort(drawn // (total // batch)), np.arange(batch))


@pytest.mark.parametrize(("batch", "total"), [(7, 50), (48, 1000), (64, 50)])
def test_strata_that_do_not_end_on_a_timestep_hold_one_draw_each(batch, total):
  # Stratum i is [i T / B, (i + 1) T / B); a draw may be rounded down to the timestep it begins in.
  edges = np.arange(batch + 1) * total / batch
  for seed in range(20):
    drawn = np.sort(np.asarray(timesteps.stratified(jax.random.key(seed), batch, total)))
    assert np.all(drawn >= np.floor(edges[:-1]))
    assert np.all(drawn < edges[1:])


@pytest.mark.parametrize("batch", [4, 7, 64])
def test_every_position_of_a_stratified_batch_is_uniform(batch):
  draw = jax.jit(jax.vmap(lambda key: timesteps.stratified(key, batch, T)))
  drawn = np.asarray(draw(keys(20_000)))
  uniform = np.full(T, 1 / T)
  assert p_value(drawn[:, 0], uniform) > 1e-3
  assert p_value(drawn[:, -1], uniform) > 1e-3


def test_the_strata_come_in_random_order():
  draw = jax.jit(jax.vmap(lambda key: timesteps.stratified(key, 5, T)))
  strata = np.asarray(draw(keys(20_000))) // 10
  pairs = np.bincount(strata[:, 0] * 5 + strata[:, 1], minlength=25).reshape(5, 5)
  assert np.all(np.diag(pairs) == 0)
  assert stats.chisquare(pairs[~np.eye(5, dtype=bool)]).pvalue > 1e-3


def test_stratified_batch_means_vary_less_than_uniform_ones():
  stratified = jax.jit(jax.vmap(lambda key: timesteps.stratified(key, 16, T)))(keys(500))
  uniform = timesteps.uniform(keys(8000), T).reshape(500, 16)
  assert np.asarray(stratified).mean(1).std() < 0.2 * np.asarray(uniform).mean(1).std()


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({}, "unknown timestep sampler None"),
    ({"name": "unifrom"}, "unknown timestep sampler 'unifrom'; did you mean 'uniform'"),
    ({"name": "uniform", "low": 3}, "key of timestep sampler 'uniform': 'low'"),
    ({"name": "interval", "low": 3, "hihg": 9}, "'hihg'; did you mean 'high'"),
    ({"name": "interval", "low": 3}, "'interval' needs the key 'high'"),
    ({"name": "interval", "low": -1, "high": 9}, "low -1 and high 9"),
    ({"name": "interval", "low": 9, "high": 9}, "low 9 and high 9"),
    ({"name": "interval", "low": 0, "high": 51}, "0 <= low < high <= 50"),
    ({"name": "interval", "low": 0.5, "high": 9}, "low must be an integer, got 0.5"),
    ({"name": "list", "values": []}, "one or more integers from 0 to 49"),
    ({"name": "list", "values": [1, 50]}, r"\(1, 50\)"),
    ({"name": "list", "values": [1.5]}, "values must be a tuple, each of its elements an integer"),
  ],
)
def test_a_sampler_config_that_cannot_be_used_is_refused(config, message):
  with pytest.raises(InputError, match=message):
    timesteps.make(config, T)


def test_an_empty_interval_is_refused():
  with pytest.raises(InputError, match="from 5 up to 5"):
    timesteps.interval(keys(2), 5, 5)


def test_an_empty_list_is_refused():
  with pytest.raises(InputError, match="list of timesteps is empty"):
    timesteps.choice(keys(2), [])


def test_an_empty_stratified_batch_is_refused():
  with pytest.raises(InputError, match="batch 0"):
    timesteps.stratified(jax.random.key(0), 0, T)
