"""Diffusion-KTO against its formula, and its statistic over the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses import cases


def kto(errors, beta=15.0, **weights):
  return losses.kto(errors, beta=beta, **weights)[0]


def exact(errors, beta, weight_w, weight_l):
  """The formula image by image in float64."""
  w, l, rw, rl = (np.float64(x) for x in errors)
  g, sign = np.concatenate([rw - w, rl - l]), np.repeat([1, -1], len(w))
  centred = g - max(0, g.mean())
  loss = np.where(sign > 0, weight_w, weight_l) * (1 - 1 / (1 + np.exp(-sign * beta * centred)))
  return loss.reshape(2, -1).mean(0)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_agrees_with_the_float64_formula(seed):
  errors, _ = cases.random_pairs(seed)
  if seed % 2:  # the policy better than the reference, so that the mean is above 0
    errors = errors._replace(policy_w=errors.policy_w / 16, policy_l=errors.policy_l / 4)
  actual = kto(errors, weight_w=1.5, weight_l=0.5)
  np.testing.assert_allclose(actual, exact(errors, 15.0, 1.5, 0.5), rtol=1e-5)


def test_value_and_slopes_at_policy_equal_to_reference_are_half_and_half_of_dpos():
  ones = jnp.ones(2)
  same = PairErrors(ones, ones, ones, ones)
  value, gradient = cases.value_and_grad(lambda e: kto(e)[0])(same)
  of_dpo = cases.grad(lambda e: losses.dpo(e, beta=15.0)[0][0])(same)
  np.testing.assert_allclose(value, 0.5, rtol=1e-6)
  np.testing.assert_allclose(gradient.policy_w, of_dpo.policy_w / 2, rtol=1e-6)
  np.testing.assert_allclose(gradient.policy_l, of_dpo.policy_l / 2, rtol=1e-6)


def test_no_gradient_passes_through_the_mean():
  errors, _ = cases.random_pairs()
  errors = errors._replace(policy_w=errors.policy_w / 16, policy_l=errors.policy_l / 4)
  gradient = cases.grad(lambda e: kto(e)[0])(errors)
  np.testing.assert_array_equal(gradient.policy_w[1:], 0)
  np.testing.assert_array_equal(gradient.policy_l[1:], 0)


def test_a_mean_below_zero_counts_as_zero():
  errors, _ = cases.random_pairs()
  worse = errors._replace(policy_w=errors.policy_w + 1, policy_l=errors.policy_l + 1)
  alone = [kto(PairErrors(*(x[i : i + 1] for x in worse)))[0] for i in range(cases.PAIRS)]
  np.testing.assert_allclose(kto(worse), alone, rtol=1e-6)


def test_two_microbatches_differ_from_the_batch():
  errors, _ = cases.random_pairs()
  errors = errors._replace(policy_w=errors.policy_w / 16, policy_l=errors.policy_l / 4)
  parts = [kto(PairErrors(*(x[part] for x in errors))) for part in (slice(0, 2), slice(2, 4))]
  assert not np.allclose(kto(errors), np.concatenate(parts), rtol=1e-3)


def test_the_mean_is_that_of_the_global_batch_on_four_devices():
  errors, _ = cases.random_pairs(pairs=8)
  errors = errors._replace(policy_w=errors.policy_w / 16, policy_l=errors.policy_l / 4)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.device_put(errors, NamedSharding(mesh, PartitionSpec("data")))
  np.testing.assert_allclose(jax.jit(kto)(spread), kto(errors), rtol=1e-6)


def test_beta_has_no_factor_one_half():
  errors, _ = cases.random_pairs()
  (_, diagnostics), (_, dpo) = losses.kto(errors, beta=15.0), losses.dpo(errors, beta=30.0)
  np.testing.assert_allclose(diagnostics.logit, dpo.logit, rtol=1e-6)


def test_gradients_agree_with_finite_differences():
  errors, _ = cases.random_pairs()
  # With the policy the worse one the mean counts as 0, so that differences do not see it move.
  errors = errors._replace(policy_w=errors.policy_w + 1, policy_l=errors.policy_l + 1)
  check_grads(jax.jit(lambda e: kto(e, beta=1.0)), (errors,), order=1, modes=["rev"], eps=1e-2)


@pytest.mark.parametrize("key", ["weight_w", "weight_l"])
def test_a_negative_weight_is_refused_by_name(key):
  with pytest.raises(ValueError, match=key):
    kto(cases.random_pairs()[0], **{key: -1.0})
