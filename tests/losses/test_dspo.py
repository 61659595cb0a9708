"""DSPO against its formula, and errors for wrong residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors, Residuals
from tests.losses import cases


def of_tensors(policy_w, policy_l, reference_w, reference_l, beta=0.5):
  """The loss with its errors taken from the tensors themselves, as in training."""
  residuals = Residuals(policy_w, policy_l, reference_w, reference_l)
  errors = PairErrors(*(losses.denoising_error(x, jnp.zeros_like(x)) for x in residuals))
  return losses.dspo(errors, residuals, beta=beta)[0]


@pytest.mark.parametrize("beta", [0.001, 0.5, 20.0])
def test_the_loss_agrees_with_the_float64_formula(beta):
  _, residuals = cases.random_pairs()
  w, l, rw, rl = (np.float64(x) for x in residuals)

  def mean(x):
    return (x**2).mean((1, 2))

  z = -beta / 2 * ((mean(w) - mean(l)) - (mean(rw) - mean(rl)))
  share = (beta / (1 + np.exp(z)))[:, None, None]
  np.testing.assert_allclose(
    of_tensors(*residuals, beta=beta), mean(w - share * (w - rw)), rtol=1e-5
  )


def test_at_policy_equal_to_reference_it_is_the_winners_error():
  errors, residuals = cases.random_pairs(near=0.0)
  np.testing.assert_allclose(
    losses.dspo(errors, residuals, beta=0.5)[0], errors.policy_w, rtol=1e-6
  )


def test_at_policy_equal_to_reference_the_gradient_is_smaller_than_that_of_fine_tuning():
  _, residuals = cases.random_pairs(near=0.0)
  slope = cases.grad(lambda w: of_tensors(w, *residuals[1:]).sum())(residuals.policy_w)
  # d/dR ‖R - beta/2 (R - Q)‖²/d at R = Q is 2 (1 - beta/2) R/d; here beta is 1/2 and d 6.
  np.testing.assert_allclose(slope, 2 * 0.75 / 6 * residuals.policy_w, rtol=1e-5)


def test_at_the_published_beta_it_is_close_to_fine_tuning():
  errors, residuals = cases.random_pairs()
  actual, _ = losses.dspo(errors, residuals, beta=0.001)
  np.testing.assert_allclose(actual, losses.sft(errors)[0], rtol=2e-3)


def test_the_gradient_passes_through_the_logit():
  _, residuals = cases.random_pairs()
  slope = cases.grad(lambda l: of_tensors(residuals.policy_w, l, *residuals[2:]).sum())(
    residuals.policy_l
  )
  assert np.all(np.abs(slope) > 0)


def test_gradients_agree_with_finite_differences():
  _, residuals = cases.random_pairs()
  check_grads(jax.jit(of_tensors), tuple(residuals), order=1, modes=["rev"], eps=1e-2)


def test_residuals_in_bfloat16_are_reduced_in_float32():
  rng = np.random.default_rng(0)
  low = Residuals(*(jnp.asarray(rng.normal(size=(2, 64, 64)), jnp.bfloat16) for _ in range(4)))
  actual = of_tensors(*low)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, of_tensors(*(x.astype(jnp.float32) for x in low)), rtol=1e-6)


def test_residuals_of_other_pairs_than_the_errors_are_refused_with_the_shapes():
  errors, residuals = cases.random_pairs()
  fewer = Residuals(*(x[:2] for x in residuals))
  with pytest.raises(ValueError, match=r"\[4, \.\.\.\].*\(2, 2, 3\)"):
    losses.dspo(errors, fewer, beta=0.5)


def test_residuals_that_are_no_floats_are_refused():
  errors, residuals = cases.random_pairs()
  whole = Residuals(*(jnp.ones(x.shape, jnp.int32) for x in residuals))
  with pytest.raises(ValueError, match="floating point; policy_w is int32"):
    losses.dspo(errors, whole, beta=0.5)


def test_a_missing_reference_residual_is_named():
  errors, residuals = cases.random_pairs()
  with pytest.raises(ValueError, match="residuals reference_w"):
    losses.dspo(errors, residuals._replace(reference_w=None), beta=0.5)
