"""The loss of a scorer, its scores and its augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from dmpo_jax.reward import held_out, objective


def test_the_loss_is_torchs_cross_entropy_with_soft_labels():
  rng = np.random.default_rng(0)
  scores, p = rng.normal(0, 5, (6, 2)).astype(np.float32), rng.uniform(0, 1, 6).astype(np.float32)
  targets = torch.tensor(np.stack([p, 1 - p], axis=1))
  expected = torch.nn.functional.cross_entropy(torch.tensor(scores), targets, reduction="none")
  np.testing.assert_allclose(objective.preference_loss(scores, p), expected, rtol=2e-6, atol=1e-6)


def test_a_tie_of_equal_scores_costs_log_two():
  loss = objective.preference_loss(jnp.zeros((1, 2)), jnp.full(1, 0.5))
  np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


def test_the_loss_of_scores_far_apart_is_finite_with_gradients():
  scores = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
  value, gradient = jax.value_and_grad(lambda s: objective.preference_loss(s, jnp.ones(2)).sum())(
    scores
  )
  np.testing.assert_allclose(value, 2e4)
  np.testing.assert_allclose(gradient, [[0, 0], [-1, 1]])


def test_gradients_agree_with_finite_differences():
  label = jnp.array([0.2, 1.0])
  scores = jnp.array([[0.3, -0.2], [1.0, 0.5]])
  check_grads(lambda s: objective.preference_loss(s, label), (scores,), order=1, eps=1e-2)


def test_both_images_of_a_pair_have_the_same_shift_whatever_the_batch():
  pixels = np.random.default_rng(0).integers(0, 255, (3, 1, 9, 9, 3), np.uint8)
  pixels = np.concatenate([pixels, pixels], axis=1)
  ids = jnp.array([4, 7, 9], jnp.uint32)
  moved = np.asarray(objective.shifted(pixels, 0, jnp.int32(5), ids, 2))
  np.testing.assert_array_equal(moved[:, 0], moved[:, 1])
  alone = objective.shifted(pixels[1:2], 0, jnp.int32(5), ids[1:2], 2)
  np.testing.assert_array_equal(alone, moved[1:2])
  padded = np.pad(pixels[1, 0], ((2, 2), (2, 2), (0, 0)), mode="edge")
  windows = [padded[i : i + 9, j : j + 9] for i in range(5) for j in range(5)]
  assert any((window == moved[1, 0]).all() for window in windows)


def test_accuracy_counts_pairs_and_its_interval_resamples_captions():
  scores = np.array([[1, 0], [1, 0], [0, 1], [2, 2], [5, 0]], float)
  p0 = np.array([1, 0.9, 1, 0, 0.5])
  record = held_out.summarise(scores, p0, ["a", "a", "b", "b", "c"])
  assert (record["pairs"], record["ties"], record["captions"]) == (4, 1, 2)
  assert record["accuracy"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
  # Of two captions, either one is sampled twice in a quarter of the resamples.
  assert (record["accuracy_low"], record["accuracy_high"]) == (0.25, 1.0)
  gap = scores[:, 0] - scores[:, 1]
  loss = -p0 * np.log(1 / (1 + np.exp(-gap))) - (1 - p0) * np.log(1 / (1 + np.exp(gap)))
  assert record["loss"] == pytest.approx(loss.mean())
