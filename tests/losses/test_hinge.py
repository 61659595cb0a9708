"""The hinge loss against its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from dmpo_jax import losses
from tests.losses.cases import at, grad, random_pairs, value_and_grad

LOGITS = np.concatenate([-np.logspace(-3, 4, 60), [0.0], np.logspace(-3, 4, 60)]).astype(np.float32)
in_logit = functools.partial(at, functools.partial(losses.hinge, beta=2.0))


def test_the_loss_agrees_with_the_float64_formula():
  errors, _ = random_pairs()
  w, l, rw, rl = (np.float64(x) for x in errors)
  wanted = np.maximum(0, 1 + 3.0 * ((w - l) - (rw - rl)))
  np.testing.assert_allclose(losses.hinge(errors, beta=3.0)[0], wanted, rtol=1e-5)
  np.testing.assert_allclose(in_logit(LOGITS), np.maximum(0, 1 - 2 * np.float64(LOGITS)), rtol=1e-6)


def test_value_and_slope_at_policy_equal_to_reference_are_one_and_minus_two():
  value, slope = value_and_grad(lambda z: in_logit(z)[0])(jnp.zeros(1))
  assert (value, slope[0]) == (1.0, -2.0)


def test_the_gradient_is_constant_before_the_margin_and_zero_after_it():
  slopes = grad(lambda z: in_logit(z).sum())(jnp.array([-1e4, 0.49, 0.5, 1e4]))
  np.testing.assert_array_equal(slopes, [-2, -2, 0, 0])


def test_gradients_agree_with_finite_differences():
  errors, _ = random_pairs()
  check_grads(jax.jit(lambda e: losses.hinge(e, beta=0.1)[0]), (errors,), order=1, eps=1e-2)
