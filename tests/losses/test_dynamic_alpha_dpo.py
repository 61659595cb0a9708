"""Dynamic alpha-DPO: its exponent, a statistic over the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses import cases


def dynamic(errors, beta=30.0, alpha=0.9):
  return losses.dynamic_alpha_dpo(errors, beta=beta, divergence_alpha=alpha)[0]


def exponent(errors, beta=30.0, alpha=0.9):
  w, l, rw, rl = (np.float64(x) for x in errors)
  return alpha * np.mean(1 / (1 + np.exp(beta / 2 * ((w - l) - (rw - rl)))))


def test_the_loss_agrees_with_the_float64_formula():
  errors, _ = cases.random_pairs()
  w, l, rw, rl = (np.float64(x) for x in errors)
  a, p = exponent(errors), 1 / (1 + np.exp(15.0 * ((w - l) - (rw - rl))))
  np.testing.assert_allclose(
    dynamic(errors), (p**a - (1 - a) - a * p) / (a * (a - 1)), rtol=1e-5, atol=1e-9
  )


def test_at_policy_equal_to_reference_the_exponent_is_half_of_alpha():
  ones = jnp.ones(3)
  same = PairErrors(ones, ones, ones, ones)
  fixed, _ = losses.alpha_dpo(same, beta=30.0, divergence_alpha=0.45)
  np.testing.assert_allclose(dynamic(same), fixed, rtol=1e-6)


def test_no_gradient_passes_through_the_exponent():
  errors, _ = cases.random_pairs()
  fixed = {"beta": 30.0, "divergence_alpha": exponent(errors)}
  wanted = cases.grad(lambda e: losses.alpha_dpo(e, **fixed)[0].sum())(errors)
  actual = cases.grad(lambda e: dynamic(e).sum())(errors)
  for a, b in zip(actual, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_the_exponent_is_that_of_the_global_batch_on_four_devices():
  errors, _ = cases.random_pairs(pairs=8)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.device_put(errors, NamedSharding(mesh, PartitionSpec("data")))
  np.testing.assert_allclose(jax.jit(dynamic)(spread), dynamic(errors), rtol=1e-6)
