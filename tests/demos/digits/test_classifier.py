"""The classifier of digits."""

import numpy as np
import pytest

from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits import classifier
from dmpo_jax.errors import InputError


@pytest.fixture(scope="module")
def parts():
  return digits.split(digits.load(), test_fraction=0.2, seed=0)


@pytest.fixture(scope="module")
def fitted(parts):
  return classifier.fit(*parts)


def test_the_accuracy_is_that_of_its_predictions_on_the_held_out_digits(parts, fitted):
  _, test = parts
  assert fitted.accuracy.value == np.mean(fitted.predict(test.images) == test.labels)
  assert fitted.test_images == len(test.labels)


def test_nearly_every_real_digit_is_classified_correctly(fitted):
  assert fitted.accuracy.low > 0.95


def test_heavier_strokes_do_not_change_the_digit(fitted):
  assert fitted.heavier_accuracy.value > fitted.accuracy.value - 0.02


def test_noise_is_classified_correctly_only_by_chance(fitted):
  x = np.random.default_rng(0).uniform(-1, 1, (500, 8, 8, 1))
  labels = np.arange(500) % 10
  assert np.mean(fitted.predict(x) == labels) < 0.2


def test_levels_out_of_range_are_clipped(parts, fitted):
  x = 1.7 * parts[1].images
  np.testing.assert_array_equal(fitted.predict(x), fitted.predict(np.clip(x, -1, 1)))


def test_an_empty_set_is_refused(parts):
  empty = digits.Digits(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))
  with pytest.raises(InputError, match="got 1438 and 0"):
    classifier.fit(parts[0], empty)
