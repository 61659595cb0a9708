"""IPO against its formula in float64 and its closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from tests.losses.cases import at, random_pairs, value_and_grad

LOGITS = np.concatenate([-np.logspace(-3, 4, 60), [0.0], np.logspace(-3, 4, 60)]).astype(np.float32)


def in_logit(z, beta):
  return at(functools.partial(losses.ipo, beta=beta), z, beta / 2)


@pytest.mark.parametrize("beta", [2.0, 100.0, 5000.0])
def test_the_loss_agrees_with_the_float64_formula(beta):
  margin = np.float64(np.float32(LOGITS / np.float32(beta / 2)))
  wanted = (margin - 1 / (2 * beta)) ** 2
  np.testing.assert_allclose(in_logit(LOGITS, beta), wanted, rtol=1e-5)


def test_value_and_slope_at_policy_equal_to_reference_are_the_closed_forms():
  value, slope = value_and_grad(lambda z: in_logit(z, 100.0)[0])(jnp.zeros(1))
  np.testing.assert_allclose(value, 1 / (4 * 100.0**2), rtol=1e-6)
  np.testing.assert_allclose(slope, [-2 / 100.0**2], rtol=1e-6)


@pytest.mark.parametrize("beta", [2.0, 5000.0])
def test_every_beta_has_its_minimum_at_a_logit_of_one_quarter(beta):
  value, slope = value_and_grad(lambda z: in_logit(z, beta)[0])(jnp.full(1, 0.25))
  np.testing.assert_allclose(value * beta**2, 0, atol=1e-7)
  np.testing.assert_allclose(slope * beta**2, [0], atol=1e-6)


def test_gradients_agree_with_finite_differences():
  errors, _ = random_pairs()
  check_grads(
    jax.jit(lambda e: losses.ipo(e, beta=3.0)[0]), (errors,), order=2, modes=["rev"], eps=1e-2
  )
