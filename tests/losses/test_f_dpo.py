"""f-DPO against derivatives of the divergences' own f, and its relation to DPO."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses.cases import grad, random_pairs, value_and_grad

A = 0.3
# f of D_f(policy ‖ reference), convex with f(1) = 0; g(s) is its derivative at exp(s).
GENERATORS = {
  "reverse_kl": lambda u: u * mpmath.log(u),
  "forward_kl": lambda u: -mpmath.log(u),
  "js": lambda u: u * mpmath.log(u) - (u + 1) * mpmath.log((u + 1) / 2),
  "alpha": lambda u: (u ** (1 - A) - (1 - A) * u - A) / (A * (A - 1)),
  "jeffreys": lambda u: (u - 1) * mpmath.log(u),
}
SLOPES = {"reverse_kl": 1.0, "forward_kl": 1.0, "js": 0.5, "alpha": 1.0, "jeffreys": 2.0}
every = pytest.mark.parametrize("divergence", GENERATORS)


def of(divergence, s_w, s_l, beta=1.0):
  """The losses where the log-ratios are s_w and s_l."""
  zero = jnp.zeros_like(s_w)
  errors = PairErrors(-s_w, -s_l, zero, zero)
  options = {"beta": beta, "inner_scale": 2.0, "divergence_alpha": A}
  return losses.f_dpo(errors, divergence=divergence, **options)[0]


@every
def test_the_loss_agrees_with_the_derivative_of_the_divergence(divergence):
  s_w = np.array([0.0, 1e-3, 0.5, -0.7, 4.0, -5.0, -9.0, 12.0], np.float32)
  s_l = np.array([0.0, -1e-3, 1.5, -0.2, -4.0, 2.0, -9.5, 11.0], np.float32)
  with mpmath.workdps(40):
    slope = functools.partial(mpmath.diff, GENERATORS[divergence])
    pairs = [(mpmath.exp(float(w)), mpmath.exp(float(l))) for w, l in zip(s_w, s_l, strict=True)]
    wanted = [float(mpmath.log1p(mpmath.exp(slope(l) - slope(w)))) for w, l in pairs]
  np.testing.assert_allclose(of(divergence, s_w, s_l), wanted, rtol=2e-5, atol=1e-30)


@every
def test_value_and_slope_at_policy_equal_to_reference_are_the_closed_forms(divergence):
  zero = jnp.zeros(1)
  value, slope = value_and_grad(lambda s: of(divergence, s, zero)[0])(zero)
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  np.testing.assert_allclose(slope, [-SLOPES[divergence] / 2], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 64.0, 16384.0])
def test_reverse_kl_is_dpo_to_the_last_bit_whatever_the_inner_scale(scale):
  errors, _ = random_pairs()
  beta = 5000.0 / scale
  actual = losses.f_dpo(errors, divergence="reverse_kl", beta=beta, inner_scale=scale)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(losses.dpo(errors, beta=beta * scale)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@every
def test_with_a_small_inner_scale_every_divergence_is_dpo_with_another_beta(divergence):
  errors, _ = random_pairs()
  actual, _ = losses.f_dpo(errors, divergence=divergence, beta=3e4, inner_scale=1e-3)
  wanted, _ = losses.dpo(errors, beta=30.0 * SLOPES[divergence])
  np.testing.assert_allclose(actual, wanted, rtol=2e-3)


@pytest.mark.parametrize(("a", "limit"), [(1e-4, "reverse_kl"), (1 - 1e-4, "forward_kl")])
def test_the_limits_of_the_alpha_divergence_are_both_kl_divergences(a, limit):
  errors, _ = random_pairs()
  options = {"beta": 2.0, "inner_scale": 10.0}
  actual, _ = losses.f_dpo(errors, divergence="alpha", divergence_alpha=a, **options)
  np.testing.assert_allclose(
    actual, losses.f_dpo(errors, divergence=limit, **options)[0], rtol=5e-3
  )


@every
def test_the_slope_is_as_precise_near_the_reference_as_at_it(divergence):
  s = jnp.array([1e-6, -1e-6])
  slope = grad(lambda s: of(divergence, s, jnp.zeros(2)).sum())(s)
  np.testing.assert_allclose(slope, np.full(2, -SLOPES[divergence] / 2), rtol=1e-5)


@every
def test_value_and_gradient_are_finite_however_far_the_policy_is(divergence):
  far = jnp.array([-1e4, 1e4, -79.9, 0.0, 0.0, 0.0])
  actual = value_and_grad(lambda a, b: of(divergence, a, b, 1000.0).sum(), (0, 1))(far, -far)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(actual))


def test_past_the_largest_exponent_an_image_has_no_gradient():
  slope = grad(lambda s: of("forward_kl", s, jnp.zeros(2), 1e-30).sum())(jnp.array([-79.0, -81]))
  assert slope[0] < 0
  assert slope[1] == 0


@every
def test_gradients_agree_with_finite_differences(divergence):
  errors, _ = random_pairs()
  options = {"divergence": divergence, "beta": 1.0, "inner_scale": 3.0}
  check_grads(
    jax.jit(lambda e: losses.f_dpo(e, **options)[0]), (errors,), order=1, modes=["rev"], eps=1e-2
  )


@pytest.mark.parametrize("divergence", ["chi_squared", "total_variation"])
def test_divergences_whose_normaliser_does_not_cancel_are_refused_with_the_reason(divergence):
  with pytest.raises(ValueError, match="partition function does not cancel"):
    of(divergence, jnp.zeros(1), jnp.zeros(1))


def test_a_misspelt_divergence_is_refused_with_a_suggestion():
  with pytest.raises(ValueError, match="did you mean 'jeffreys'"):
    of("jefreys", jnp.zeros(1), jnp.zeros(1))


@pytest.mark.parametrize("key", ["inner_scale", "divergence_alpha"])
def test_a_number_out_of_range_is_refused_by_name(key):
  errors, _ = random_pairs()
  options = {"divergence": "alpha", "beta": 1.0, "inner_scale": 1.0, key: -1.0}
  with pytest.raises(ValueError, match=key):
    losses.f_dpo(errors, **options)
