"""FlowCPO against its definition, its expansion, and DiffusionNFT's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors, Residuals
from tests.losses import cases


def mean_square(x):
  return (np.float64(x) ** 2).mean((1, 2))


@pytest.mark.parametrize(("beta", "weight_l"), [(0.5, 1.0), (1.0, 0.3), (2.0, 0.0)])
def test_the_loss_agrees_with_its_definition_on_predictions(beta, weight_l):
  rng = np.random.default_rng(0)
  policy, old, target = rng.normal(size=(3, 2, 4, 2, 3))
  residuals = Residuals(*(jnp.float32(x) for x in (*(policy - target), *(old - target))))
  errors = PairErrors(*(losses.denoising_error(x, jnp.zeros_like(x)) for x in residuals))
  mixed_w = (1 - beta) * old[0] + beta * policy[0]
  mixed_l = (1 + beta) * old[1] - beta * policy[1]
  expected = mean_square(mixed_w - target[0]) + weight_l * mean_square(mixed_l - target[1])
  actual, _ = losses.contrastive(errors, residuals, beta=beta, weight_l=weight_l)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0])
def test_the_loss_is_the_linear_margin_plus_distances_from_the_reference(beta):
  errors, residuals = cases.random_pairs()
  (ew, el, rw, rl), (w, l, old_w, old_l) = (map(np.float64, x) for x in (errors, residuals))
  away_w, away_l = mean_square(w - old_w), mean_square(l - old_l)
  expected = beta * (ew - el) + beta * (beta - 1) * away_w + beta * (beta + 1) * away_l
  expected += (1 - beta) * rw + (1 + beta) * rl
  actual, _ = losses.contrastive(errors, residuals, beta=beta)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_a_soft_label_weights_both_images_as_diffusion_nft_does():
  errors, residuals = cases.random_pairs()
  label, beta = np.array([0.0, 0.3, 0.5, 1.0]), 0.7
  expected = 0
  for r, policy, old in (
    (label, residuals.policy_w, residuals.reference_w),
    (1 - label, residuals.policy_l, residuals.reference_l),
  ):
    towards = mean_square((1 - beta) * np.float64(old) + beta * np.float64(policy))
    away = mean_square((1 + beta) * np.float64(old) - beta * np.float64(policy))
    expected = expected + r * towards + (1 - r) * away
  loss = jax.tree_util.Partial(losses.contrastive, beta=beta)
  actual, _ = losses.soft_label_loss(loss, errors, jnp.float32(label), residuals)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_at_policy_equal_to_reference_it_is_the_sum_of_the_references_errors():
  errors, residuals = cases.random_pairs(near=0.0)
  actual, _ = losses.contrastive(errors, residuals, beta=0.5, weight_l=0.25)
  np.testing.assert_allclose(actual, errors.reference_w + errors.reference_l / 4, rtol=1e-6)


def test_beta_one_without_the_rejected_image_is_fine_tuning():
  errors, residuals = cases.random_pairs()
  actual, _ = losses.contrastive(errors, residuals, beta=1.0, weight_l=0.0)
  np.testing.assert_allclose(actual, losses.sft(errors)[0], rtol=1e-5)


def test_gradients_agree_with_finite_differences():
  errors, residuals = cases.random_pairs()
  loss = jax.jit(lambda r: losses.contrastive(errors, Residuals(*r), beta=0.5)[0])
  check_grads(loss, (tuple(residuals),), order=1, modes=["rev"], eps=1e-2)


def test_residuals_in_bfloat16_are_reduced_in_float32():
  rng = np.random.default_rng(0)
  low = Residuals(*(jnp.asarray(rng.normal(size=(2, 64, 64)), jnp.bfloat16) for _ in range(4)))
  high = Residuals(*(x.astype(jnp.float32) for x in low))
  errors = PairErrors(*(losses.denoising_error(x, jnp.zeros_like(x)) for x in high))
  actual, _ = losses.contrastive(errors, low, beta=0.5)
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, losses.contrastive(errors, high, beta=0.5)[0])
