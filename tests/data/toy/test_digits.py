"""The digits, their captions, splits and preference pairs."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dmpo_jax.data.datasets import digit_pairs
from dmpo_jax.data.toy import digits
from dmpo_jax.errors import InputError


@pytest.fixture(scope="module")
def real():
  return digits.load()


@pytest.fixture(scope="module")
def pairs(real):
  return digits.preference_pairs(real, num_pairs=4000, temperature=0.03, seed=5)


def test_pixels_are_those_of_scikit_learn_in_minus_one_to_one(real):
  raw = load_digits().images
  assert real.images.dtype == np.float32
  assert real.images.shape == (1797, 8, 8, 1)
  np.testing.assert_array_equal((real.images[..., 0] + 1) * 8, raw)
  assert (real.images.min(), real.images.max()) == (-1, 1)


def test_labels_are_scikit_learns(real):
  np.testing.assert_array_equal(real.labels, load_digits().target)
  assert real.labels.dtype == np.int32


def test_captions_spell_the_digit():
  assert digits.captions([7, 0]) == ["the digit seven", "the digit zero"]


def test_a_label_that_is_no_digit_is_refused():
  with pytest.raises(InputError, match="label 10 is no digit"):
    digits.captions([3, 10])


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
  for name in [m for m in sys.modules if m.split(".")[0] == "sklearn"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "sklearn", None)  # python's own way to bar an import
  with pytest.raises(InputError, match=r"pip install 'dmpo-jax\[quickstart\]'"):
    digits.load()


def test_the_split_is_stratified_by_digit(real):
  train, test = digits.split(real, test_fraction=0.2, seed=0)
  np.testing.assert_array_equal(
    np.bincount(test.labels), np.round(0.2 * np.bincount(real.labels)).astype(int)
  )
  assert len(train.labels) + len(test.labels) == len(real.labels)


def test_every_image_is_in_one_split_only(real):
  numbered = digits.Digits(np.arange(1797, dtype=np.float32), real.labels)
  train, test = digits.split(numbered, test_fraction=0.3, seed=1)
  np.testing.assert_array_equal(np.sort(np.r_[train.images, test.images]), numbered.images)


def test_another_seed_gives_another_split(real):
  _, a = digits.split(real, test_fraction=0.2, seed=0)
  _, b = digits.split(real, test_fraction=0.2, seed=1)
  assert not np.array_equal(a.images, b.images)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_outside_zero_to_one_is_refused(real, fraction):
  with pytest.raises(InputError, match=r"test_fraction must be a number in \(0, 1\)"):
    digits.split(real, test_fraction=fraction, seed=0)


def test_a_split_without_some_digit_is_refused(real):
  with pytest.raises(InputError, match="both need at least one"):
    digits.split(real, test_fraction=0.001, seed=0)


def test_ink_is_the_mean_grey_level_of_the_clipped_image():
  images = np.stack([np.full((2, 2, 1), v) for v in (-1.0, 0.0, 1.0, 3.0)])
  np.testing.assert_array_equal(digits.ink(images), [0, 0.5, 1, 1])


def test_ink_of_a_pixel_that_is_not_a_number_is_refused():
  with pytest.raises(InputError, match="1 of 4 pixels are NaN or infinite"):
    digits.ink(np.array([0, 0, np.nan, 0]).reshape(1, 2, 2, 1))


def test_a_pair_holds_two_different_images_of_its_digit(real, pairs):
  assert (pairs.indices[:, 0] != pairs.indices[:, 1]).all()
  np.testing.assert_array_equal(
    real.labels[pairs.indices], np.stack([pairs.labels, pairs.labels], axis=1)
  )


def test_the_images_and_ink_of_a_pair_are_those_of_its_indices(real, pairs):
  np.testing.assert_array_equal(pairs.images, real.images[pairs.indices])
  np.testing.assert_allclose(
    pairs.ink, ((real.images[pairs.indices] + 1) / 2).mean(axis=(2, 3, 4)), rtol=1e-6
  )


def test_flipped_pairs_prefer_the_image_with_less_ink(pairs):
  np.testing.assert_array_equal(pairs.flipped, pairs.ink[:, 0] < pairs.ink[:, 1])


def test_p_preferred_is_the_sigmoid_of_the_inks_difference(pairs):
  difference = pairs.ink[:, 0].astype(np.float64) - pairs.ink[:, 1]
  np.testing.assert_allclose(pairs.p_preferred, 1 / (1 + np.exp(-difference / 0.03)), rtol=1e-4)


def test_the_flip_rate_is_that_of_the_bradley_terry_model(pairs):
  p_flip = np.minimum(pairs.p_preferred, 1 - pairs.p_preferred).astype(np.float64)
  spread = np.sqrt((p_flip * (1 - p_flip)).sum())
  assert abs(pairs.flipped.sum() - p_flip.sum()) < 4 * spread


def test_near_ties_are_labelled_at_random_and_clear_cases_are_not(pairs):
  gap = np.abs(pairs.ink[:, 0] - pairs.ink[:, 1])
  assert 0.4 < pairs.flipped[gap < 0.005].mean() < 0.55
  assert pairs.flipped[gap > 0.12].mean() < 0.03


def test_at_a_low_temperature_no_label_is_flipped(real):
  cold = digits.preference_pairs(real, num_pairs=500, temperature=1e-6, seed=0)
  assert not cold.flipped.any()


def test_every_image_and_every_partner_is_sampled_equally_often():
  three = digits.Digits(np.zeros((3, 8, 8, 1), np.float32), np.full(3, 4, np.int32))
  drawn = digits.preference_pairs(three, num_pairs=6000, temperature=1.0, seed=0).indices
  ordered = np.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
  np.testing.assert_array_equal(ordered[[0, 4, 8]], 0)
  np.testing.assert_allclose(ordered[[1, 2, 3, 5, 6, 7]], 1000, atol=130)


def test_pairs_depend_on_the_seed_alone(real, pairs):
  again = digits.preference_pairs(real, num_pairs=4000, temperature=0.03, seed=5)
  other = digits.preference_pairs(real, num_pairs=4000, temperature=0.03, seed=6)
  np.testing.assert_array_equal(again.indices, pairs.indices)
  assert not np.array_equal(other.indices, pairs.indices)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"temperature": 0.0}, r"temperature must be a number in \[1e-12, .*\], got 0\.0"),
    ({"temperature": float("nan")}, "temperature must be a number in .*, got nan"),
    ({"num_pairs": 0}, "num_pairs must be an integer from 1 to 1000000, got 0"),
  ],
)
def test_numbers_out_of_range_are_refused(real, wrong, message):
  with pytest.raises(InputError, match=message):
    digits.preference_pairs(real, **{"num_pairs": 4, "temperature": 0.1, "seed": 0, **wrong})


def test_a_digit_with_a_single_image_cannot_be_paired():
  lone = digits.Digits(np.zeros((3, 8, 8, 1), np.float32), np.array([1, 1, 2], np.int32))
  with pytest.raises(InputError, match="each digit needs two images"):
    digits.preference_pairs(lone, num_pairs=4, temperature=0.1, seed=0)


def test_the_test_split_can_be_paired():
  train, test = (
    digit_pairs(num_pairs=400, temperature=0.03, seed=1, split=split) for split in ("train", "test")
  )
  seen = {image.tobytes() for pair in train.images for image in pair}
  assert not any(image.tobytes() in seen for pair in test.images for image in pair)
  with pytest.raises(InputError, match="split of the digits 'tset'"):
    digit_pairs(num_pairs=4, temperature=0.03, seed=1, split="tset")
