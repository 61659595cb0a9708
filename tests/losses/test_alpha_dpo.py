"""Alpha-DPO against its formula in sixty digits, its limits, and its dynamic form."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from tests.losses import cases

ALPHAS = [0.0, 1e-6, 0.5, 0.9999, 1.0]
every = pytest.mark.parametrize("a", ALPHAS)
LOGITS = np.concatenate([-np.logspace(-4, 4, 40), [0.0], np.logspace(-4, 1.6, 30)]).astype(
  np.float32
)


def in_logit(z, a):
  return cases.at(functools.partial(losses.alpha_dpo, beta=2.0, divergence_alpha=a), z)


def exact(z, a):
  """Value and slope by the formula as it is printed; its limits where it divides by zero."""
  values, slopes = [], []
  with mpmath.workdps(60):
    a = mpmath.mpf(float(np.float32(a)))
    for x in z:
      growth = mpmath.exp(-mpmath.mpf(float(x)))
      p = 1 / (1 + growth)
      n = growth * p
      if a == 0:
        value, slope = -mpmath.log(p) - n, -(n**2)
      elif a == 1:
        value, slope = p * mpmath.log(p) + n, p * n * mpmath.log(p)
      else:
        value = (p**a - (1 - a) - a * p) / (a * (a - 1))
        slope = p * n * (p ** (a - 1) - 1) / (a - 1)
      values.append(float(value))
      slopes.append(float(slope))
  return np.array(values), np.array(slopes)


@every
def test_value_and_slope_agree_with_the_exact_formula_for_logits_up_to_ten_thousand(a):
  value, slope = exact(LOGITS, a)
  actual = jax.jit(lambda z: in_logit(z, a))(LOGITS)
  gradient = cases.grad(lambda z: in_logit(z, a).sum())(LOGITS)
  normal = value > 1e-36
  np.testing.assert_allclose(actual[normal], value[normal], rtol=2e-6)
  np.testing.assert_allclose(gradient, slope, rtol=5e-6, atol=1e-36)


def test_value_and_slope_at_policy_equal_to_reference_are_the_closed_forms():
  value, slope = cases.value_and_grad(lambda z: in_logit(z, 0.5)[0])(jnp.zeros(1))
  np.testing.assert_allclose(value, 3 - 2 * np.sqrt(2), rtol=1e-6)  # 4 (3/4 - 1/sqrt 2)
  np.testing.assert_allclose(slope, [0.5 - np.sqrt(0.5)], rtol=1e-6)


def test_towards_alpha_zero_it_is_dpo_minus_one_minus_p():
  errors, _ = cases.random_pairs()
  actual, diagnostics = losses.alpha_dpo(errors, beta=30.0, divergence_alpha=0.0)
  doubt = jax.nn.sigmoid(-diagnostics.logit)
  np.testing.assert_allclose(actual, losses.dpo(errors, beta=30.0)[0] - doubt, rtol=1e-4)


def test_towards_alpha_zero_misranked_pairs_have_the_gradient_of_dpo():
  slope = cases.grad(lambda z: in_logit(z, 0.0)[0])(jnp.full(1, -12.0))
  np.testing.assert_allclose(slope, [-1.0], rtol=1e-4)


@every
def test_near_certainty_every_alpha_gives_half_the_square_of_one_minus_p(a):
  z = jnp.array([9.0, 14.0])
  np.testing.assert_allclose(in_logit(z, a), 0.5 / (1 + np.exp([9.0, 14.0])) ** 2, rtol=2e-4)


def test_the_limit_of_a_misranked_pair_is_one_over_alpha():
  np.testing.assert_allclose(in_logit(jnp.full(1, -1e4), 0.25), [4.0], rtol=1e-6)


@every
def test_gradients_agree_with_finite_differences(a):
  errors, _ = cases.random_pairs()
  options = {"beta": 3.0, "divergence_alpha": a}
  check_grads(jax.jit(lambda e: losses.alpha_dpo(e, **options)[0]), (errors,), order=1, eps=1e-2)


def test_second_derivatives_agree_with_finite_differences():
  z = jnp.linspace(-3, 3, 5)
  check_grads(jax.jit(lambda z: in_logit(z, 0.9999)), (z,), order=2, modes=["rev"], eps=1e-2)


@pytest.mark.parametrize("loss", [losses.alpha_dpo, losses.dynamic_alpha_dpo])
@pytest.mark.parametrize("a", [-0.1, 1.1, float("nan"), "0.5"])
def test_an_alpha_outside_zero_to_one_is_refused_by_name(loss, a):
  with pytest.raises(ValueError, match="divergence_alpha"):
    loss(cases.random_pairs()[0], beta=1.0, divergence_alpha=a)
