"""Diversity of features."""

import numpy as np
import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import diversity


def unit(rng, n, d):
  x = rng.normal(size=(n, d))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_equal_features_are_one_and_orthogonal_ones_are_n():
  np.testing.assert_allclose(diversity.vendi(np.ones((5, 3))), 1)
  np.testing.assert_allclose(diversity.vendi(np.eye(4)), 4)


def test_two_groups_of_equal_features_are_the_exponential_of_their_entropy():
  x = np.repeat(np.eye(2), [1, 3], axis=0)
  p = np.array([0.25, 0.75])
  np.testing.assert_allclose(diversity.vendi(x), np.exp(-(p * np.log(p)).sum()))


def test_the_score_is_that_of_the_dual_form():
  x = unit(np.random.default_rng(0), 6, 4)
  values = np.linalg.eigvalsh(x.T @ x / 6)  # [d, d]
  np.testing.assert_allclose(diversity.vendi(x), np.exp(-(values * np.log(values)).sum()))


def test_the_cosine_distance_is_the_mean_over_pairs():
  x = unit(np.random.default_rng(1), 5, 7)
  pairs = [1 - x[i] @ x[j] for i in range(5) for j in range(i)]
  np.testing.assert_allclose(diversity.cosine_distance(x), np.mean(pairs))


def test_the_pixel_distance_is_the_mean_over_pairs():
  x = np.random.default_rng(2).uniform(size=(4, 10))
  pairs = [np.sqrt(np.mean((x[i] - x[j]) ** 2)) for i in range(4) for j in range(i)]
  np.testing.assert_allclose(diversity.pixel_distance(x), np.mean(pairs))


def test_one_image_has_no_distance():
  with pytest.raises(InputError, match="n >= 2"):
    diversity.cosine_distance(np.ones((1, 3)))
