"""Diffusion-DPO and cDPO against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors

LOGITS = np.concatenate([-np.logspace(-3, 4, 80), [0.0], np.logspace(-3, 4, 80)]).astype(np.float32)


def at(z, **hyperparameters):
  """The loss where the logit is z: beta 2 and all errors but the preferred image's at zero."""
  zero = jnp.zeros_like(z)
  return losses.dpo(PairErrors(-z, zero, zero, zero), beta=2.0, **hyperparameters)[0]


def exact(z, s):
  z = z.astype(np.float64)
  return (1 - s) * np.logaddexp(0, -z) + s * np.logaddexp(0, z)


@pytest.mark.parametrize("s", [0.0, 0.01, 0.3])
def test_the_loss_agrees_with_the_float64_formula_for_logits_up_to_ten_thousand(s):
  actual, wanted = np.asarray(at(LOGITS, label_smoothing=s)), exact(LOGITS, s)
  normal = wanted > 1e-36  # below, float32 has no relative precision left
  np.testing.assert_allclose(actual[normal], wanted[normal], rtol=1e-6)
  assert np.all(actual[~normal] < 1e-36)


def test_the_loss_at_policy_equal_to_reference_is_log_two_with_slope_minus_one_half():
  value, slope = jax.value_and_grad(lambda z: at(z)[0])(jnp.zeros(1))
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  np.testing.assert_allclose(slope, [-0.5], rtol=1e-6)


def test_the_slope_at_minus_five_is_the_sigmoid_of_five():
  np.testing.assert_allclose(jax.grad(lambda z: at(z)[0])(jnp.full(1, -5.0)), [-0.9933], atol=1e-4)


def test_gradients_are_finite_for_extreme_logits():
  gradient = jax.grad(lambda z: at(z, label_smoothing=0.1).sum())(jnp.asarray(LOGITS))
  assert np.all(np.isfinite(gradient))


def test_gradients_agree_with_finite_differences():
  errors = PairErrors(*jnp.asarray(np.random.default_rng(1).uniform(0, 1, (4, 5)), jnp.float32))
  check_grads(
    lambda e: losses.dpo(e, beta=3.0, label_smoothing=0.1)[0], (errors,), order=1, eps=1e-2
  )


def test_conservative_dpo_is_least_where_the_policy_matches_the_smoothed_target():
  s = 0.05
  slope = jax.grad(lambda z: at(z, label_smoothing=s)[0])(jnp.full(1, np.log((1 - s) / s)))
  np.testing.assert_allclose(slope, [0.0], atol=1e-7)


@pytest.mark.parametrize("s", [-0.1, 0.5, 1.0, float("nan")])
def test_label_smoothing_outside_zero_to_one_half_is_refused_by_name(s):
  with pytest.raises(ValueError, match="label_smoothing"):
    at(jnp.zeros(2), label_smoothing=s)
