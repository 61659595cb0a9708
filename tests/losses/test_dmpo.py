"""DMPO against its formula in float64, its closed forms and its limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors

ALPHAS = [1e-4, 0.01, 0.1, 0.4, 0.499]
LOGITS = np.concatenate([-np.logspace(-3, 4, 200), [0.0], np.logspace(-3, 4, 200)]).astype(
  np.float32
)


def at(z, alpha=0.01, beta=2.0):
  """The loss where the logit is z: all errors but the preferred image's are zero."""
  zero = jnp.zeros_like(z)
  return losses.dmpo(PairErrors(-2.0 / beta * z, zero, zero, zero), beta=beta, alpha=alpha)[0]


def target(alpha):
  return math.log((1 - alpha) / alpha)


def exact(z, alpha):
  """KL(Bernoulli(σ(z)) ‖ Bernoulli(1 - alpha)) in float64."""
  z = np.asarray(z, np.float64)
  log_p, log_not_p = -np.logaddexp(0, -z), -np.logaddexp(0, z)
  return np.exp(log_p) * (log_p - np.log1p(-alpha)) + np.exp(log_not_p) * (
    log_not_p - np.log(alpha)
  )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_loss_agrees_with_the_float64_formula_for_logits_up_to_ten_thousand(alpha):
  np.testing.assert_allclose(
    jax.jit(lambda z: at(z, alpha))(LOGITS), exact(LOGITS, alpha), rtol=1e-6
  )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_loss_keeps_its_precision_near_its_zero(alpha):
  u = target(alpha)
  offsets = np.logspace(-3, 0.7, 60)
  z = np.concatenate([u - offsets, u + offsets]).astype(np.float32)
  # Second order in the distance, the formula itself loses digits in float64: integrate the slope.
  delta = z.astype(np.float64) - u
  nodes, weights = np.polynomial.legendre.leggauss(40)
  inner = u + np.outer(delta, (nodes + 1) / 2)
  slope = np.exp(-np.logaddexp(0, inner) - np.logaddexp(0, -inner))
  wanted = delta**2 * ((slope * (nodes + 1) / 2) @ (weights / 2))
  np.testing.assert_allclose(jax.jit(lambda z: at(z, alpha))(z), wanted, rtol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_loss_vanishes_at_the_target_and_nowhere_else(alpha):
  u = target(alpha)
  assert at(jnp.full(1, u), alpha)[0] < 1e-12
  assert np.all(at(jnp.array([u - 0.1, u + 0.1]), alpha) > 1e-7)


def test_the_loss_at_policy_equal_to_reference_has_the_closed_form():
  value, slope = jax.value_and_grad(lambda z: at(z)[0])(jnp.zeros(1))
  np.testing.assert_allclose(value, 0.5 * math.log(0.5 / 0.99) + 0.5 * math.log(50), rtol=1e-6)
  np.testing.assert_allclose(value, 1.614463, atol=1e-6)
  np.testing.assert_allclose(slope, [-1.148780], atol=1e-6)


def test_the_slope_at_minus_five_is_nearly_zero():
  np.testing.assert_allclose(jax.grad(lambda z: at(z)[0])(jnp.full(1, -5.0)), [-0.0638], atol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_slope_is_p_times_one_minus_p_times_the_distance_to_the_target(alpha):
  z = np.linspace(-30, 30, 241).astype(np.float32)
  p, not_p = 1 / (1 + np.exp(-z.astype(np.float64))), 1 / (1 + np.exp(z.astype(np.float64)))
  actual = jax.grad(lambda z: at(z, alpha).sum())(jnp.asarray(z))
  np.testing.assert_allclose(actual, p * not_p * (z - target(alpha)), rtol=2e-6, atol=1e-9)


def test_past_the_target_the_gradient_reduces_the_margin():
  slopes = jax.grad(lambda z: at(z).sum())(jnp.array([target(0.01) - 1, target(0.01) + 1]))
  assert slopes[0] < 0 < slopes[1]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_limits_are_the_logarithms_of_the_target(alpha):
  actual = at(jnp.array([-1e4, 1e4]), alpha)
  np.testing.assert_allclose(actual, [-math.log(alpha), -math.log1p(-alpha)], rtol=1e-6)


def test_gradients_are_finite_for_extreme_logits():
  gradient = jax.grad(lambda z: at(z).sum())(jnp.asarray(LOGITS))
  assert np.all(np.isfinite(gradient))


def test_gradients_agree_with_finite_differences():
  errors = PairErrors(*jnp.asarray(np.random.default_rng(1).uniform(0, 1, (4, 5)), jnp.float32))
  check_grads(lambda e: losses.dmpo(e, beta=3.0, alpha=0.1)[0], (errors,), order=2, eps=1e-2)


def test_with_flipped_labels_the_optimum_shrinks_by_one_minus_twice_the_rate():
  eta, alpha = 0.2, 0.05

  def mixed(z):
    return (1 - eta) * at(z, alpha)[0] + eta * at(-z, alpha)[0]

  slope = jax.grad(mixed)(jnp.full(1, (1 - 2 * eta) * target(alpha)))
  np.testing.assert_allclose(slope, [0.0], atol=1e-6)


def test_dmpo_and_conservative_dpo_share_their_minimiser():
  z = jnp.full(1, target(0.1))
  zero = jnp.zeros(1)
  for loss in (
    lambda z: losses.dmpo(PairErrors(-z, zero, zero, zero), beta=2.0, alpha=0.1)[0][0],
    lambda z: losses.dpo(PairErrors(-z, zero, zero, zero), beta=2.0, label_smoothing=0.1)[0][0],
  ):
    np.testing.assert_allclose(jax.grad(loss)(z), [0.0], atol=1e-7)


def test_beta_only_scales_the_logit():
  z = jnp.linspace(-3, 3, 11)
  np.testing.assert_allclose(at(z, beta=5000.0), at(z, beta=2.0), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -0.1, float("nan"), "0.01"])
def test_alpha_outside_zero_to_one_half_is_refused_by_name(alpha):
  with pytest.raises(ValueError, match="alpha"):
    at(jnp.zeros(2), alpha)


def test_the_loss_can_be_mapped_and_compiled():
  z = jnp.linspace(-3, 8, 12).reshape(3, 4)
  np.testing.assert_allclose(jax.jit(jax.vmap(at))(z), np.stack([at(row) for row in z]), rtol=1e-6)
