"""Scores of the samples of one model."""

import json

import numpy as np
import pytest

from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits.measurement import measure
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import statistics

LABELS = np.repeat(np.arange(3), 4)


def samples(seed):
  return np.random.default_rng(seed).uniform(-1, 1, (12, 8, 8, 1))


def predict(images):
  """A classifier that depends on the first pixel alone."""
  return np.digitize(images[:, 0, 0, 0], [-0.3, 0.3])


@pytest.fixture(scope="module")
def scores():
  return measure(samples(0), LABELS, predict=predict, baseline=samples(1), resamples=2000)


def test_ink_is_the_score_that_the_pairs_are_labelled_with(scores):
  assert scores["ink_values"] == digits.ink(samples(0)).tolist()


def test_a_model_is_compared_with_its_baseline_unit_by_unit(scores):
  a, b = digits.ink(samples(0)), digits.ink(samples(1))
  assert scores["win_rate"].value == np.mean(a > b)
  np.testing.assert_allclose(scores["ink_gain"].value, np.mean(a - b))


def test_digit_accuracy_and_its_change_follow_the_classifier(scores):
  right, was_right = (np.mean(predict(samples(seed)) == LABELS) for seed in (0, 1))
  assert scores["digit_accuracy"].value == right
  np.testing.assert_allclose(scores["accuracy_change"].value, right - was_right)


def test_diversity_is_computed_per_caption(scores):
  assert scores["diversity"]["vendi"] == statistics.vendi(samples(0), LABELS)
  assert (
    scores["diversity"]["pairwise"].value
    == statistics.pairwise_distance(samples(0), LABELS, resamples=2000).value
  )


def test_the_reference_itself_has_no_comparison():
  alone = measure(samples(0), LABELS, predict=predict, resamples=2000)
  assert [alone[k] for k in ("ink_gain", "win_rate", "accuracy_change")] == [None, None, None]


def test_the_scores_can_be_written_as_json(scores):
  assert json.loads(json.dumps(scores))["ink"] == list(scores["ink"])


@pytest.mark.parametrize(
  ("labels", "baseline", "message"),
  [
    (LABELS[:5], None, r"labels \(5,\) must be one per image"),
    (LABELS, samples(1)[:5], r"baseline \(5, 8, 8, 1\) must have the shape \(12, 8, 8, 1\)"),
  ],
)
def test_arrays_of_different_lengths_are_refused(labels, baseline, message):
  with pytest.raises(InputError, match=message):
    measure(samples(0), labels, predict=predict, baseline=baseline)
