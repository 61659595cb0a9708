"""The SDPO safeguard: the value of the base, a scaled gradient, and its guarantee."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_jax import losses
from dmpo_jax.losses import Residuals
from dmpo_jax.losses.sdpo import safeguard
from tests.losses import cases

INSIDE = [name for name in cases.NAMES if name not in ("sdpo", "sft")]
DPO = functools.partial(losses.dpo, beta=30.0)


def scale(residuals, mu):
  """λ of each pair in float64."""
  w, l = (np.float64(x).reshape(len(x), -1) for x in residuals[:2])
  along, square = (w * l).sum(1), (w * w).sum(1)
  return np.where(along > 0, np.clip((1 - mu) * square / np.where(along > 0, along, 1), 0, 1), 1)


@pytest.mark.parametrize("name", INSIDE)
def test_the_value_is_that_of_the_base(name):
  errors, residuals = cases.random_pairs()
  base = cases.bind(name)
  actual, _ = losses.sdpo(errors, residuals, base=base, mu=0.9)
  np.testing.assert_array_equal(actual, cases.apply(base, errors, residuals))


@pytest.mark.parametrize("mu", [0.0, 0.9, 1.0])
def test_the_losers_gradient_is_scaled_and_the_winners_is_not(mu):
  errors, residuals = cases.random_pairs(pairs=16)
  along = jnp.linspace(-1, 3, 16)[:, None, None] * residuals.policy_w
  residuals = residuals._replace(policy_l=along + residuals.policy_l / 4)
  guarded = cases.grad(lambda e: losses.sdpo(e, residuals, base=DPO, mu=mu)[0].sum())(errors)
  plain = cases.grad(lambda e: DPO(e)[0].sum())(errors)
  wanted = scale(residuals, mu)
  assert len(np.unique(wanted)) > (1 if mu == 1 else 2)  # cut, uncut, and in between
  np.testing.assert_allclose(guarded.policy_w, plain.policy_w, rtol=1e-6)
  np.testing.assert_allclose(guarded.policy_l, wanted * plain.policy_l, rtol=1e-5)


def test_the_gradient_of_an_opposed_loser_is_unchanged():
  errors, residuals = cases.random_pairs()
  away = residuals._replace(policy_l=-residuals.policy_w)
  guarded = cases.grad(lambda e: losses.sdpo(e, away, base=DPO, mu=1.0)[0].sum())(errors)
  np.testing.assert_array_equal(
    guarded.policy_l, cases.grad(lambda e: DPO(e)[0].sum())(errors).policy_l
  )


@given(seed=st.integers(0, 10**6), mu=st.floats(0, 1))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_step_keeps_at_least_mu_of_the_winners_progress(seed, mu):
  _, residuals = cases.random_pairs(seed)
  w, l = (np.float64(x).reshape(cases.PAIRS, -1) for x in residuals[:2])
  actual = np.float64(safeguard(residuals, mu))
  # One output stands for both images, and e_w - e_l falls along its gradient w - λ l.
  progress = (w * (w - actual[:, None] * l)).sum(1)
  assert np.all(progress >= mu * (w * w).sum(1) - 1e-5)


def test_pairs_do_not_share_their_scale():
  errors, residuals = cases.random_pairs()
  other = Residuals(*(x.at[1:].multiply(3.0) for x in residuals))
  grads = [
    cases.grad(lambda e, r=r: losses.sdpo(e, r, base=DPO, mu=0.9)[0][0])(errors)
    for r in (residuals, other)
  ]
  np.testing.assert_array_equal(grads[0].policy_l, grads[1].policy_l)


def test_no_gradient_passes_through_the_scale():
  errors, residuals = cases.random_pairs()
  gradient = cases.grad(lambda r: losses.sdpo(errors, r, base=DPO, mu=0.9)[0].sum())(residuals)
  assert all(np.all(x == 0) for x in jax.tree.leaves(gradient))


def test_residuals_of_zero_leave_the_gradient_unchanged():
  errors, residuals = cases.random_pairs()
  zero = jax.tree.map(jnp.zeros_like, residuals)
  gradient = cases.grad(lambda e: losses.sdpo(e, zero, base=DPO, mu=0.9)[0].sum())(errors)
  assert np.all(np.isfinite(gradient.policy_l))


def test_a_base_without_requirements_is_refused():
  errors, residuals = cases.random_pairs()
  with pytest.raises(ValueError, match="does not say what it needs"):
    losses.sdpo(errors, residuals, base=lambda e: DPO(e), mu=0.9)


@pytest.mark.parametrize("mu", [-0.1, 1.1, float("nan")])
def test_mu_outside_zero_to_one_is_refused_by_name(mu):
  with pytest.raises(ValueError, match="mu"):
    losses.sdpo(*cases.random_pairs(), base=DPO, mu=mu)
