"""Linear-DPO against numerical integrals, golden values, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses import cases


def factor(margin, beta, eta, clip):
  """ω by the program's formula, float64."""
  return np.clip(0.2 * beta * margin + 0.5, eta, 1 - eta if clip == "code" else 1.0)


def of_margin(margin, **arguments):
  """The loss at e_w - r_w = margin and other errors 1."""
  margin = jnp.asarray(margin, jnp.float32)
  one = jnp.ones_like(margin)
  return losses.linear_dpo(PairErrors(one + margin, one, one, one), **arguments)[0]


@pytest.mark.parametrize("clip", ["code", "paper"])
@pytest.mark.parametrize("eta", [0.0, 0.001, 0.2])
@pytest.mark.parametrize("margin", [-0.9, -0.1, 0.0, 0.3, 2.0])
def test_the_loss_is_the_integral_of_the_factor(clip, eta, margin):
  grid = np.linspace(0, margin, 200_001)
  expected = np.trapezoid(factor(grid, 7.0, eta, clip), grid)
  actual = of_margin([margin], beta=7.0, eta=eta, clip=clip)
  np.testing.assert_allclose(actual, [expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", ["code", "paper"])
def test_the_gradient_is_that_of_the_programs_product(clip):
  errors, _ = cases.random_pairs()
  w, l, rw, rl = (np.float64(x) for x in errors)
  omega = factor((w - l) - (rw - rl), 9.0, 0.01, clip)
  slopes = cases.grad(lambda e: losses.linear_dpo(e, beta=9.0, eta=0.01, clip=clip)[0].sum())(
    errors
  )
  np.testing.assert_allclose(slopes.policy_w, omega, rtol=1e-4)
  np.testing.assert_allclose(slopes.policy_l, -omega, rtol=1e-4)


def test_at_policy_equal_to_reference_the_loss_is_zero_and_the_slopes_are_halves():
  errors, _ = cases.random_pairs(near=0.0)
  loss, slopes = cases.value_and_grad(
    lambda e: losses.linear_dpo(e, beta=100.0, eta=1e-3)[0].sum()
  )(errors)
  assert loss == 0
  np.testing.assert_allclose(slopes.policy_w, 0.5, rtol=1e-6)
  np.testing.assert_allclose(slopes.policy_l, -0.5, rtol=1e-6)


def test_a_learned_margin_has_the_published_weight():
  # beta 1, Δ = -2: ω = 0.1; the integral from 0 is 0.1 Δ² + 0.5 Δ = -0.6.
  zero = jnp.zeros(1)
  errors = PairErrors(zero, zero + 2, zero, zero)
  loss, slope = cases.value_and_grad(
    lambda w: losses.linear_dpo(errors._replace(policy_w=w), beta=1.0, eta=0.0)[0][0]
  )(zero)
  np.testing.assert_allclose([loss, slope[0]], [-0.6, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
  ("clip", "margin", "slope"), [("code", -1e4, 0.1), ("code", 1e4, 0.9), ("paper", 1e4, 1.0)]
)
def test_the_slope_is_bounded_far_out(clip, margin, slope):
  value, actual = cases.value_and_grad(
    lambda m: of_margin(m, beta=5000.0, eta=0.1, clip=clip).sum()
  )(jnp.asarray([margin]))
  np.testing.assert_allclose(actual, [slope], rtol=1e-6)
  np.testing.assert_allclose(value, slope * margin, rtol=1e-3)


def test_a_gentle_beta_is_dpo_with_a_gradient_of_the_same_size():
  errors, _ = cases.random_pairs(near=0.01)
  ours = cases.grad(lambda e: losses.linear_dpo(e, beta=0.1, eta=0.0)[0].sum())(errors)
  dpo = cases.grad(lambda e: losses.dpo(e, beta=1.0)[0].sum() * 2)(errors)
  np.testing.assert_allclose(ours.policy_w, dpo.policy_w, rtol=0.01)


def test_gradients_agree_with_finite_differences():
  errors, _ = cases.random_pairs()
  loss = jax.jit(lambda e: losses.linear_dpo(PairErrors(*e), beta=3.0, eta=0.1)[0])
  check_grads(loss, (tuple(errors),), order=1, modes=["rev"], eps=1e-2)


def test_an_unknown_clip_is_named():
  errors, _ = cases.random_pairs()
  with pytest.raises(ValueError, match="unknown clip of linear_dpo 'papr'; did you mean 'paper'"):
    losses.linear_dpo(errors, beta=1.0, eta=0.0, clip="papr")
