"""Soft labels: expectations over which image is preferred."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses import cases

LABELLED = [n for n in cases.NAMES if not losses.LOSSES[n].requirements.why_no_soft_labels]
every = pytest.mark.parametrize("name", LABELLED)


@functools.cache
def compiled(name):
  """(errors, residuals, label) -> losses."""
  loss = cases.bind(name)

  def run(errors, residuals, label):
    more = (residuals,) if losses.requirements(loss).residuals else ()
    return losses.soft_label_loss(loss, errors, label, *more)[0]

  return jax.jit(run)


@every
def test_a_label_of_one_is_the_loss_itself(name):
  errors, residuals = cases.random_pairs()
  actual = compiled(name)(errors, residuals, np.ones(cases.PAIRS, np.float32))
  np.testing.assert_allclose(actual, cases.compiled(name)(errors, residuals)[0], rtol=1e-5)


@every
@given(label=st.floats(0, 1, width=32), seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_swapping_the_images_and_the_label_changes_nothing(name, label, seed):
  errors, residuals = cases.random_pairs(seed)
  label, other = (np.full(cases.PAIRS, x, np.float32) for x in (label, 1 - np.float32(label)))
  swapped = compiled(name)(losses.swap(errors), losses.swap(residuals), other)
  np.testing.assert_allclose(
    compiled(name)(errors, residuals, label), swapped, rtol=1e-4, atol=1e-6
  )


def test_dpo_under_labels_is_the_cross_entropy_to_them():
  errors, _ = cases.random_pairs()
  label = np.array([0.0, 0.5, 0.3, 1.0], np.float32)
  actual, _ = losses.soft_label_loss(functools.partial(losses.dpo, beta=30.0), errors, label)
  w, l, rw, rl = (np.float64(x) for x in errors)
  z = -15.0 * ((w - l) - (rw - rl))
  wanted = label * np.logaddexp(0, -z) + (1 - label) * np.logaddexp(0, z)
  np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def _slope(loss, label, z):
  """Slope in the logit of the expected loss, beta being 2."""
  zero = jnp.zeros(1)

  def run(z):
    return losses.soft_label_loss(loss, PairErrors(-z, zero, zero, zero), label)[0][0]

  return cases.grad(run)(jnp.full(1, z))


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.3, 0.5])
def test_flipped_labels_scale_dmpos_optimum_by_one_minus_twice_the_rate(eta):
  loss = functools.partial(losses.dmpo, beta=2.0, alpha=0.05)
  optimum = (1 - 2 * eta) * math.log(0.95 / 0.05)
  np.testing.assert_allclose(_slope(loss, 1 - eta, optimum), [0], atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.3, 0.5])
def test_flipped_labels_move_conservative_dpos_optimum_to_the_averaged_probability(eta):
  loss = functools.partial(losses.dpo, beta=2.0, label_smoothing=0.05)
  p = (1 - eta) * 0.95 + eta * 0.05
  np.testing.assert_allclose(_slope(loss, 1 - eta, math.log(p / (1 - p))), [0], atol=1e-6)


def test_the_optimum_of_a_tie_is_a_margin_of_zero():
  for name in ("dmpo", "alpha_dpo", "f_dpo"):
    loss = cases.bind(name)
    same = PairErrors(*(jnp.full(2, 0.2) for _ in range(4)))
    gradient = cases.grad(lambda e, loss=loss: losses.soft_label_loss(loss, e, 0.5)[0].sum())(same)
    np.testing.assert_allclose(gradient.policy_w, 0, atol=1e-6)


def test_the_baseline_of_kto_does_not_depend_on_the_labels():
  errors, _ = cases.random_pairs()
  errors = errors._replace(policy_w=errors.policy_w / 16, policy_l=errors.policy_l / 4)
  loss = functools.partial(losses.kto, beta=15.0)
  # 1 - σ turns into σ when a pair is swapped, the baseline staying: the two add up to 1.
  total = loss(errors)[0] + loss(losses.swap(errors))[0]
  np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_diagnostics_are_expectations_too():
  errors, _ = cases.random_pairs()
  loss = cases.bind("dpo")
  _, plain = loss(errors)
  _, diagnostics = losses.soft_label_loss(loss, errors, jnp.full(cases.PAIRS, 0.75))
  np.testing.assert_allclose(diagnostics.logit, plain.logit / 2, rtol=1e-5)
  np.testing.assert_allclose(diagnostics.accuracy, 0.25 + 0.5 * plain.accuracy, rtol=1e-6)


def test_fine_tuning_under_labels_is_the_expected_error():
  errors, _ = cases.random_pairs()
  actual, _ = losses.soft_label_loss(losses.sft, errors, 0.25)
  np.testing.assert_allclose(actual, 0.25 * errors.policy_w + 0.75 * errors.policy_l, rtol=1e-6)


def test_a_loss_whose_statistic_depends_on_the_labels_refuses_them_with_the_reason():
  errors, residuals = cases.random_pairs()
  with pytest.raises(ValueError, match="exponent is the batch's mean preference"):
    losses.soft_label_loss(cases.bind("dynamic_alpha_dpo"), errors, 0.5)
  with pytest.raises(ValueError, match="exponent is the batch's mean preference"):
    losses.soft_label_loss(
      cases.bind("sdpo", base=cases.bind("dynamic_alpha_dpo")), errors, 0.5, residuals
    )


def test_single_images_have_no_labels():
  with pytest.raises(ValueError, match="no rejected images"):
    losses.soft_label_loss(losses.sft, PairErrors(jnp.ones(2)), 0.5)


def test_labels_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
    losses.soft_label_loss(losses.sft, cases.random_pairs()[0], jnp.ones(3))
