"""Statistics and their intervals against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import statistics


def noise(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape)


def pair_means(images, groups):
  """Mean distance by loops, a group at a time."""
  grey = (np.clip(images, -1, 1) + 1) / 2
  per_group = []
  for group in sorted(set(groups)):
    x = grey[np.asarray(groups) == group]
    distances = [
      np.sqrt(np.mean((x[i] - x[j]) ** 2)) for i in range(len(x)) for j in range(i + 1, len(x))
    ]
    per_group.append(np.mean(distances))
  return np.mean(per_group)


def test_an_interval_as_text_has_its_value_and_its_ends():
  assert str(statistics.Interval(0.4494, 0.44, 0.4579)) == "0.449 [0.440, 0.458]"


def test_an_interval_of_a_fraction_can_be_written_in_percent():
  assert statistics.Interval(0.975, 0.944, 1.0).as_percent() == "97.5% [94.4, 100.0]"


def test_the_bootstrap_agrees_with_scipys():
  x = np.random.default_rng(1).gamma(2.0, size=60)
  ours = statistics.bootstrap(x, resamples=20_000)
  theirs = stats.bootstrap(
    (x,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
  ).confidence_interval
  assert ours.value == x.mean()
  np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.015)


def test_the_bootstrap_of_wins_has_the_binomials_quantiles():
  x = np.r_[np.ones(150), np.zeros(50)]
  interval = statistics.bootstrap(x, resamples=20_000)
  expected = stats.binom(200, 0.75).ppf([0.025, 0.975]) / 200
  np.testing.assert_allclose(interval, [0.75, *expected], atol=0.005)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for trial in range(300):
    interval = statistics.bootstrap(rng.normal(size=80), level=0.9, resamples=2000, seed=trial)
    hits += interval.low <= 0 <= interval.high
  assert 0.84 < hits / 300 < 0.95


def test_another_statistic_can_be_bootstrapped():
  x = np.random.default_rng(3).exponential(size=101)
  interval = statistics.bootstrap(x, statistic=np.median, resamples=4000)
  assert interval.value == np.median(x)
  assert interval.low < interval.value < interval.high


def test_a_wider_level_gives_a_wider_interval():
  x = noise(50)
  narrow, wide = (statistics.bootstrap(x, level=level) for level in (0.5, 0.99))
  assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_depends_on_the_seed_alone():
  x = noise(50)
  assert statistics.bootstrap(x, seed=4) == statistics.bootstrap(x, seed=4)
  assert statistics.bootstrap(x, seed=4) != statistics.bootstrap(x, seed=5)


def test_the_interval_does_not_depend_on_how_the_work_is_chunked(monkeypatch):
  x = noise(50)
  whole = statistics.bootstrap(x)
  monkeypatch.setattr(statistics, "CHUNK", 50 * 37)
  assert statistics.bootstrap(x) == whole


@pytest.mark.parametrize(
  ("values", "settings", "message"),
  [
    ([], {}, "vector of at least one number"),
    ([[1.0]], {}, r"got shape \(1, 1\)"),
    ([1.0, np.nan], {}, "1 of 2 values are NaN or infinite, the first at 1"),
    ([1.0], {"level": 95}, "level must lie between 0 and 1, got 95"),
    ([1.0], {"resamples": 100}, "resamples must be at least 2000"),
  ],
)
def test_values_that_cannot_be_resampled_are_refused(values, settings, message):
  with pytest.raises(InputError, match=message):
    statistics.bootstrap(np.array(values), **settings)


def test_a_tie_counts_half_a_win():
  np.testing.assert_array_equal(
    statistics.wins(np.array([3.0, 1.0, 2.0]), np.array([2.0, 2.0, 2.0])), [1, 0, 0.5]
  )


def test_the_win_rate_of_a_model_against_itself_is_one_half():
  assert statistics.win_rate(noise(20), noise(20)) == (0.5, 0.5, 0.5)


def test_the_win_rates_of_two_models_against_each_other_sum_to_one():
  a, b = np.round(noise(200), 1), np.round(noise(200, seed=1), 1)
  there, back = statistics.win_rate(a, b), statistics.win_rate(b, a)
  np.testing.assert_allclose(there.value + back.value, 1)
  np.testing.assert_allclose([there.low, there.high], [1 - back.high, 1 - back.low], atol=1e-12)


def test_a_paired_difference_cancels_the_common_part():
  shared = 10 * noise(100)
  gain = 0.1 + 0.01 * noise(100, seed=1)
  interval = statistics.paired_difference(shared + gain, shared)
  np.testing.assert_allclose(interval.value, gain.mean())
  assert interval.high - interval.low < 0.01


def test_scores_of_different_lengths_are_refused():
  with pytest.raises(InputError, match="3 candidate scores and 2 baseline scores"):
    statistics.win_rate(np.zeros(3), np.zeros(2))


def test_the_pairwise_distance_is_the_mean_over_pairs_then_groups():
  images, groups = noise(9, 4, 4, 1), [0, 1, 0, 1, 1, 0, 1, 1, 1]
  interval = statistics.pairwise_distance(images, np.array(groups), resamples=2000)
  np.testing.assert_allclose(interval.value, pair_means(images, groups), rtol=1e-12)


def test_copies_of_one_image_have_no_distance():
  images = np.tile(noise(1, 4, 4, 1), (6, 1, 1, 1))
  np.testing.assert_allclose(
    statistics.pairwise_distance(images, np.zeros(6), resamples=2000), 0, atol=1e-12
  )


def test_blank_beside_full_ink_is_at_distance_one():
  images = np.stack([np.full((2, 2, 1), -1.0), np.full((2, 2, 1), 5.0)])
  assert statistics.pairwise_distance(images, np.zeros(2), resamples=2000) == (1, 1, 1)


def test_the_distances_interval_covers_the_populations_mean():
  rng = np.random.default_rng(0)
  population = noise(400, 2, 1, 1, seed=9)
  truth = pair_means(population, np.zeros(400))
  hits = 0
  for trial in range(200):
    sample = population[rng.choice(400, 20, replace=False)]
    interval = statistics.pairwise_distance(sample, np.zeros(20), resamples=2000, seed=trial)
    hits += interval.low <= truth <= interval.high
  assert 0.88 < hits / 200 < 1


def test_the_distances_interval_is_centred_on_its_value():
  interval = statistics.pairwise_distance(noise(60, 4, 4, 1), np.arange(60) % 3)
  assert abs((interval.low + interval.high) / 2 - interval.value) < 0.15 * (
    interval.high - interval.low
  )


def test_vendi_counts_images_that_share_no_pixel():
  images = 2 * np.eye(5).reshape(5, 5, 1, 1) - 1
  np.testing.assert_allclose(statistics.vendi(images, np.zeros(5)), 5)


def test_vendi_of_images_alike_up_to_brightness_is_one():
  grey = np.array([0.2, 0.5, 1.0])[:, None, None, None] * (noise(1, 3, 3, 1) + 1) / 2
  np.testing.assert_allclose(statistics.vendi(2 * grey - 1, np.zeros(3)), 1)


def test_vendi_of_two_images_follows_from_their_cosine():
  grey = (noise(2, 3, 3, 1) + 1) / 2
  a, b = grey.reshape(2, -1)
  cosine = a @ b / np.sqrt((a @ a) * (b @ b))
  expected = np.exp(stats.entropy([(1 + cosine) / 2, (1 - cosine) / 2]))
  np.testing.assert_allclose(statistics.vendi(2 * grey - 1, np.zeros(2)), expected)


def test_vendi_counts_blank_images_as_one_kind():
  images = np.full((4, 2, 2, 1), -1.0)
  images[2:, 0, 0] = 1
  np.testing.assert_allclose(statistics.vendi(images, np.zeros(4)), 2)


def test_vendi_averages_over_the_groups():
  images = 2 * np.eye(4).reshape(4, 4, 1, 1) - 1
  groups = np.array([0, 0, 1, 1])
  np.testing.assert_allclose(statistics.vendi(np.concatenate([images, images[[0, 0]]]),
    np.r_[groups, 2, 2]), (2 + 2 + 1) / 3)  # fmt: skip


@pytest.mark.parametrize("score", [statistics.vendi, statistics.pairwise_distance])
@pytest.mark.parametrize(
  ("images", "groups", "message"),
  [
    (noise(3, 2, 2, 1), [0, 0, 1], "has one image; diversity needs two or more"),
    (noise(3, 2, 2, 1), [0, 0], r"must be \[N, H, W, C\] and \[N\]"),
    (np.full((2, 2, 2, 1), np.inf), [0, 0], "8 of 8 pixels are NaN or infinite"),
  ],
)
def test_images_of_which_no_diversity_exists_are_refused(score, images, groups, message):
  with pytest.raises(InputError, match=message):
    score(images, np.array(groups))


def clustered(rng, prompts, seeds, *, between, within):
  """Values of images whose prompts differ, and the prompt of each."""
  values = rng.normal(scale=between, size=(prompts, 1)) + rng.normal(
    scale=within, size=(prompts, seeds)
  )
  return values.ravel(), np.repeat(np.arange(prompts), seeds)


def test_resampling_prompts_covers_the_mean_of_clustered_data_and_images_do_not():
  rng, hits = np.random.default_rng(3), {"prompts": 0, "images": 0}
  experiments = 200
  for _ in range(experiments):
    values, groups = clustered(rng, 40, 8, between=1.0, within=0.5)
    for name, given in (("prompts", groups), ("images", None)):
      interval = statistics.bootstrap(values, groups=given, resamples=2000)
      hits[name] += interval.low <= 0 <= interval.high
  # 95% +- 3 standard errors of 200 experiments; eight seeds of one prompt count as one.
  assert hits["prompts"] / experiments > 0.90
  assert hits["images"] / experiments < 0.70


def test_the_interval_over_prompts_has_the_width_of_their_means():
  values, groups = clustered(np.random.default_rng(4), 300, 4, between=1.0, within=1.0)
  interval = statistics.bootstrap(values, groups=groups)
  error = values.reshape(300, 4).mean(axis=1).std() / np.sqrt(300)
  np.testing.assert_allclose(interval.high - interval.low, 2 * 1.96 * error, rtol=0.05)


def test_the_ratio_of_means_has_the_interval_of_the_delta_method():
  rng = np.random.default_rng(5)
  b = rng.uniform(1, 2, size=500)
  a = 0.8 * b + rng.normal(scale=0.1, size=500)
  interval = statistics.ratio(a, b)
  r = a.mean() / b.mean()
  error = (a - r * b).std() / b.mean() / np.sqrt(500)
  np.testing.assert_allclose(interval.value, r)
  np.testing.assert_allclose(interval.high - interval.low, 2 * 1.96 * error, rtol=0.05)


def test_a_win_rate_over_prompts_is_the_mean_of_their_rates():
  candidate, baseline = np.array([2.0, 2.0, 0.0, 1.0]), np.ones(4)
  rate = statistics.win_rate(candidate, baseline, groups=np.array([0, 0, 1, 1]))
  assert rate.value == pytest.approx(0.625)
