"""Edits of digits and the preferences between them."""

import numpy as np
import pytest

from dmpo_jax.data.datasets import digit_edit_pairs, digit_edits
from dmpo_jax.data.toy import digit_edits as edits
from dmpo_jax.data.toy import digits
from dmpo_jax.errors import InputError


@pytest.fixture(scope="module")
def pairs():
  return edits.preference_pairs(digits.load(), num_pairs=4000, temperature=0.25, seed=5)


def test_thickening_spreads_ink_to_the_four_neighbours():
  image = np.full((1, 3, 3, 1), -1.0)
  image[0, 1, 1] = 1
  thick = edits.thicken(image, 0.5)[0, ..., 0]
  np.testing.assert_array_equal(thick, [[-1, 0, -1], [0, 1, 0], [-1, 0, -1]])


def test_each_image_has_its_own_strength():
  images = digits.load().images[:2]
  both = edits.thicken(images, np.array([0.2, 0.6]))
  np.testing.assert_array_equal(both[1], edits.thicken(images[1:], 0.6)[0])
  np.testing.assert_array_equal(edits.thin(images, np.array([1.0, 2.0]))[0], images[0])


def test_the_strength_of_a_weight_is_its_change_of_ink():
  source, edit = np.full((2, 8, 8, 1), -0.5), np.full((2, 8, 8, 1), -0.4)  # ink 0.25 and 0.3
  done = edits.strength(edit, source, [edits.BOLDER, edits.THINNER], np.zeros(2, int))
  np.testing.assert_allclose(done, [0.5, -0.5])


def test_turning_into_a_digit_is_done_where_the_digit_is_shown():
  blank = np.zeros((2, 8, 8, 1))
  done = edits.strength(blank, blank, [edits.TURN[7], edits.TURN[8]], np.array([7, 7]))
  np.testing.assert_array_equal(done, [1, 0])


def test_what_a_weight_keeps_is_the_correlation_with_the_source():
  images = digits.load().images
  kept = edits.kept(images[1:5], images[:4], [edits.BOLDER, edits.THINNER] * 2)
  expected = [np.corrcoef(images[i + 1].ravel(), images[i].ravel())[0, 1] for i in range(4)]
  np.testing.assert_allclose(kept, expected, rtol=1e-5)
  assert edits.kept(np.full((1, 8, 8, 1), -1.0), images[:1], [edits.BOLDER]) == 0


def test_what_another_digit_keeps_is_the_weight():
  source, edit = np.full((1, 8, 8, 1), -0.5), np.full((1, 8, 8, 1), -0.46)  # ink 0.25 and 0.27
  np.testing.assert_allclose(edits.kept(edit, source, [edits.TURN[3]]), [0.8])


def test_the_labels_follow_the_bradley_terry_model(pairs):
  gap = np.abs(pairs.scores[:, 0] - pairs.scores[:, 1])
  wrong = pairs.scores[:, 0] < pairs.scores[:, 1]
  expected = 1 / (1 + np.exp(gap / 0.25))
  assert abs(wrong.mean() - expected.mean()) < 4 * np.sqrt(
    np.mean(expected * (1 - expected)) / 4000
  )


def test_instructions_ask_for_another_digit_than_the_sources(pairs):
  real = digits.load()
  label_of = {image.tobytes(): int(x) for image, x in zip(real.images, real.labels, strict=True)}
  for source, text in zip(pairs.sources, pairs.instructions, strict=True):
    assert text != edits.TURN[label_of[source.tobytes()]]


def test_data_sets_have_sources_and_are_the_same_for_a_seed():
  for make, settings in (
    (digit_edits, {"num_edits": 20}),
    (digit_edit_pairs, {"num_pairs": 20, "temperature": 0.25}),
  ):
    first, again = (make(seed=3, **settings) for _ in range(2))
    assert first.has_sources
    assert first.fingerprint() == again.fingerprint() != make(seed=4, **settings).fingerprint()


def test_an_unknown_instruction_is_refused():
  with pytest.raises(InputError, match="instruction"):
    edits.kept(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), ["make it snowy"])
