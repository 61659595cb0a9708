"""Supervised fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors

W, L = jnp.array([0.1, 0.3]), jnp.array([0.2, 0.2])


def test_the_loss_is_the_winners_error():
  loss, diagnostics = losses.sft(PairErrors(W, L, None, None))
  np.testing.assert_array_equal(loss, W)
  np.testing.assert_allclose(diagnostics.logit, [0.05, -0.05], rtol=1e-6)
  np.testing.assert_array_equal(diagnostics.accuracy, [1.0, 0.0])


def test_single_images_without_losers_have_no_logit():
  loss, diagnostics = losses.sft(PairErrors(W))
  np.testing.assert_array_equal(loss, W)
  assert diagnostics.logit is None
  assert diagnostics.accuracy is None


def test_no_gradient_reaches_the_loser():
  gradient = jax.grad(lambda l: losses.sft(PairErrors(W, l, W, L))[0].sum())(L)
  np.testing.assert_array_equal(gradient, np.zeros(2))
