"""The weights of the iterations."""

import numpy as np
import pytest

from dmpo_jax import ddo
from dmpo_jax.errors import InputError


def test_the_recursion_of_dual_averaging_is_its_sum():
  beta, beta_prime = 0.3, 0.7
  gradients = np.random.default_rng(0).normal(size=6)
  f = 0.0
  for k, g in enumerate(gradients, start=1):
    a, b = ddo.averaging_weights(k, beta=beta, beta_prime=beta_prime)
    f = a * f + b * g
  steps = np.arange(1, 7)
  expected = np.sum(steps * gradients) / (beta * 6 * 7 / 2 + beta_prime * 7)
  np.testing.assert_allclose(f, expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_with_equal_betas_the_weights_are_those_of_particle_dual_averaging(k):
  a, b = ddo.averaging_weights(k, beta=0.4, beta_prime=0.4)
  assert a == pytest.approx(k / (k + 2))
  assert b == pytest.approx(2 * k / ((k + 1) * (k + 2)) / 0.4)


def test_a_constant_gradient_falls_short_by_k_over_k_plus_two_beta_prime_over_beta():
  f = 0.0
  for k in range(1, 6):
    a, b = ddo.averaging_weights(k, beta=0.5, beta_prime=0.8)
    f = a * f + b * 3.0
  assert f == pytest.approx(5 / (5 + 2 * 0.8 / 0.5) * 3.0 / 0.5)


def test_proximal_weights_mix_the_old_potential_and_the_gradient():
  a, b = ddo.proximal_weights(3, beta=0.5, tau=2.0)
  assert (a, b) == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: ddo.averaging_weights(0, beta=1.0, beta_prime=1.0), "k must be an integer from 1"),
    (lambda: ddo.averaging_weights(1, beta=0.0, beta_prime=1.0), "beta must be"),
    (lambda: ddo.averaging_weights(1, beta=1.0, beta_prime=-1.0), "beta_prime must be"),
    (lambda: ddo.proximal_weights(1, beta=1.0, tau=0.0), "tau must be"),
  ],
)
def test_a_number_out_of_range_is_refused_by_name(call, message):
  with pytest.raises(InputError, match=message):
    call()
