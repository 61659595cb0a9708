"""Statistics of an evaluation, and the choice of the images that it shows."""

import numpy as np
import pytest
from scipy import stats

from dmpo_jax.evaluation import comparison
from dmpo_jax.evaluation.comparison import Measured


@pytest.fixture(scope="module")
def measured():
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(30), 4)
  base = np.repeat(rng.normal(size=30), 4) + rng.normal(scale=0.3, size=120)
  change = rng.normal(0.2, 0.5, size=120).round(1)  # some are 0: ties
  scores = {
    "a": {"reference": base.round(1), "dmpo": base.round(1) + change},
    "b": {"reference": -base, "dmpo": -base + change + rng.normal(scale=0.2, size=120)},
  }
  spread = rng.uniform(1, 2, size=30)
  return Measured(
    models=["reference", "dmpo"],
    groups=groups,
    categories=["animals"] * 40 + ["arts"] * 80,
    scores=scores,
    space="pixels",
    vendi={"reference": spread, "dmpo": 0.9 * spread},
    distance={"reference": spread / 4, "dmpo": spread / 5},
  )


@pytest.fixture(scope="module")
def result(measured):
  return comparison.compare(measured)


def test_mean_change_and_win_rate_are_those_of_the_images(measured, result):
  a, b = (measured.scores["a"][model] for model in ("dmpo", "reference"))
  entry = result["scores"]["a"]["dmpo"]
  np.testing.assert_allclose(entry["mean"].value, a.mean())
  np.testing.assert_allclose(entry["difference"].value, (a - b).mean())
  np.testing.assert_allclose(entry["win_rate"].value, np.mean(a > b) + np.mean(a == b) / 2)


def test_the_interval_of_the_change_is_that_of_the_prompts_means(measured, result):
  change = measured.scores["a"]["dmpo"] - measured.scores["a"]["reference"]
  error = change.reshape(30, 4).mean(axis=1).std() / np.sqrt(30)
  interval = result["scores"]["a"]["dmpo"]["difference"]
  np.testing.assert_allclose(interval.high - interval.low, 2 * 1.96 * error, rtol=0.06)


def test_the_reference_is_compared_with_nothing(result):
  entry = result["scores"]["a"]["reference"]
  assert (entry["difference"], entry["win_rate"]) == (None, None)


def test_categories_hold_the_prompts_of_their_own(measured, result):
  assert [c["prompts"] for c in result["categories"].values()] == [10, 20]
  mean = result["categories"]["arts"]["scores"]["b"]["dmpo"]["mean"].value
  np.testing.assert_allclose(mean, measured.scores["b"]["dmpo"][40:].mean())
  vendi = result["categories"]["arts"]["diversity"]["models"]["reference"]["vendi"].value
  np.testing.assert_allclose(vendi, measured.vendi["reference"][10:].mean())


def test_diversity_has_its_ratio_to_the_reference(result):
  entry = result["diversity"]["models"]["dmpo"]
  np.testing.assert_allclose(entry["vendi_ratio"], 0.9)  # value and both ends
  np.testing.assert_allclose(entry["distance_ratio"], 0.8)


def test_scorers_agree_as_scipys_rank_correlation_says(measured, result):
  (entry,) = result["agreement"]
  a, b = (
    np.concatenate([measured.scores[s][m] for m in measured.models]) for s in entry["scorers"]
  )
  np.testing.assert_allclose(entry["rank_correlation"], stats.spearmanr(a, b).statistic)
  x, y = (measured.scores[s]["dmpo"] - measured.scores[s]["reference"] for s in entry["scorers"])
  np.testing.assert_allclose(entry["difference_rank_correlation"], stats.spearmanr(x, y).statistic)
  same = np.where((x == 0) | (y == 0), 0.5, (x > 0) == (y > 0))
  np.testing.assert_allclose(entry["sign_agreement"].value, same.mean())


def test_best_and_worst_are_the_largest_differences_one_of_each_prompt():
  groups = np.array([0, 0, 1, 1, 2, 2])
  chosen = comparison.examples(np.array([5, 4, 3, -1, 0, 1.0]), np.zeros(6), groups, count=2)
  assert (chosen["best"], chosen["worst"]) == ([0, 2], [3, 4])


def test_random_examples_are_the_same_for_all_candidates():
  groups = np.repeat(np.arange(9), 2)
  a, b = (
    comparison.examples(np.random.default_rng(i).normal(size=18), np.zeros(18), groups, count=4)
    for i in (0, 1)
  )
  assert a["random"] == b["random"]
  assert len({groups[i] for i in a["random"]}) == 4
