"""The judge of which digit an image shows."""

import numpy as np
import pytest

from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits import classifier
from dmpo_jax.errors import InputError


@pytest.fixture(scope="module")
def parts():
  return digits.split(digits.load(), test_fraction=0.2, seed=0)


@pytest.fixture(scope="module")
def judge(parts):
  return classifier.fit(*parts)


def test_the_accuracy_is_that_of_its_predictions_on_the_held_out_digits(parts, judge):
  _, test = parts
  assert judge.accuracy.value == np.mean(judge.predict(test.images) == test.labels)
  assert judge.test_images == len(test.labels)


def test_it_names_nearly_every_real_digit(judge):
  assert judge.accuracy.low > 0.95


def test_heavier_strokes_do_not_change_the_digit(judge):
  assert judge.heavier_accuracy.value > judge.accuracy.value - 0.02


def test_noise_agrees_with_a_label_only_by_chance(judge):
  x = np.random.default_rng(0).uniform(-1, 1, (500, 8, 8, 1))
  labels = np.arange(500) % 10
  assert np.mean(judge.predict(x) == labels) < 0.2


def test_a_sample_beyond_the_grey_levels_is_judged_as_it_is_shown(parts, judge):
  x = 1.7 * parts[1].images
  np.testing.assert_array_equal(judge.predict(x), judge.predict(np.clip(x, -1, 1)))


def test_thickening_spreads_ink_to_the_four_neighbours():
  image = np.full((1, 3, 3, 1), -1.0)
  image[0, 1, 1] = 1
  found = classifier.thicken(image, spread=0.5)[0, ..., 0]
  np.testing.assert_array_equal(found, [[-1, 0, -1], [0, 1, 0], [-1, 0, -1]])


def test_an_empty_part_is_refused(parts):
  empty = digits.Digits(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))
  with pytest.raises(InputError, match="got 1438 and 0"):
    classifier.fit(parts[0], empty)
