"""All scores of one model's samples."""

import json

import numpy as np
import pytest

from dmpo_jax.demos.digits.measurement import measure, statistics
from dmpo_jax.errors import InputError

LABELS = np.repeat(np.arange(3), 4)


def samples(seed):
  return np.random.default_rng(seed).uniform(-1, 1, (12, 8, 8, 1))


def predict(images):
  """A judge that takes its answer from the first pixel."""
  return np.digitize(images[:, 0, 0, 0], [-0.3, 0.3])


@pytest.fixture(scope="module")
def found():
  return measure(samples(0), LABELS, predict=predict, baseline=samples(1), resamples=2000)


def test_a_model_is_compared_with_its_baseline_unit_by_unit(found):
  a, b = statistics.ink(samples(0)), statistics.ink(samples(1))
  assert found["win_rate"].value == np.mean(a > b)
  np.testing.assert_allclose(found["ink_gain"].value, np.mean(a - b))


def test_digit_accuracy_and_its_change_follow_the_judge(found):
  right, was_right = (np.mean(predict(samples(seed)) == LABELS) for seed in (0, 1))
  assert found["digit_accuracy"].value == right
  np.testing.assert_allclose(found["accuracy_change"].value, right - was_right)


def test_diversity_is_taken_caption_by_caption(found):
  assert found["diversity"]["vendi"] == statistics.vendi(samples(0), LABELS)
  assert (
    found["diversity"]["pairwise"].value
    == statistics.pairwise_distance(samples(0), LABELS, resamples=2000).value
  )


def test_the_reference_itself_is_compared_with_nothing():
  alone = measure(samples(0), LABELS, predict=predict, resamples=2000)
  assert [alone[k] for k in ("ink_gain", "win_rate", "accuracy_change")] == [None, None, None]


def test_the_scores_can_be_written_as_json(found):
  assert json.loads(json.dumps(found))["ink"] == list(found["ink"])


@pytest.mark.parametrize(
  ("labels", "baseline", "message"),
  [
    (LABELS[:5], None, r"labels \(5,\) must be one per image"),
    (LABELS, samples(1)[:5], r"baseline \(5, 8, 8, 1\) must have the shape \(12, 8, 8, 1\)"),
  ],
)
def test_what_does_not_fit_together_is_refused(labels, baseline, message):
  with pytest.raises(InputError, match=message):
    measure(samples(0), labels, predict=predict, baseline=baseline)
