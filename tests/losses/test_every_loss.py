"""Every loss: its requirements, documentation, and properties under random pairs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses import cases

# Multiples of 2^-10 up to 4: sums and differences of them are exact in float32.
ERRORS = st.lists(st.integers(0, 4096), min_size=16, max_size=16).map(
  lambda x: PairErrors(*(np.array(x, np.float32) / 1024).reshape(4, cases.PAIRS))
)
SEEDS = st.integers(0, 10**6)
quick = settings(max_examples=15, deadline=None, derandomize=True)
every = pytest.mark.parametrize("name", cases.NAMES)
_, RESIDUALS = cases.random_pairs()


def test_every_loss_has_a_case_here():
  assert set(cases.HYPERPARAMETERS) == set(losses.LOSSES)


@every
def test_the_docstring_gives_arguments_results_errors_and_source(name):
  text = inspect.getdoc(losses.LOSSES[name])
  for part in ("\n    loss", "Args:", "Returns:", "Raises:", "Source:"):
    if (name, part) != ("mapo", "\n    loss"):  # whose two equations begin with their form
      assert part in text
  for argument in inspect.signature(losses.LOSSES[name]).parameters:
    assert f"\n  {argument}:" in text


@every
def test_a_missing_requirement_is_named(name):
  loss, (errors, residuals) = cases.bind(name), cases.random_pairs()
  needs = losses.requirements(loss)
  needed = ["policy_w"] + ["policy_l"] * needs.rejected + ["reference_w"] * needs.reference
  for field in needed:
    with pytest.raises(ValueError, match=field):
      cases.apply(loss, errors._replace(**{field: None}), residuals)
  if needs.residuals:
    with pytest.raises(ValueError, match="residuals policy_w"):
      loss(errors, losses.Residuals(None, None))


@every
def test_inputs_that_are_not_required_may_be_missing(name):
  loss, (errors, residuals) = cases.bind(name), cases.random_pairs()
  needs = losses.requirements(loss)
  less = errors._replace(
    policy_l=errors.policy_l if needs.rejected else None,
    reference_w=errors.reference_w if needs.reference else None,
    reference_l=errors.reference_l if needs.reference else None,
  )
  whole = cases.apply(loss, errors, residuals)
  np.testing.assert_array_equal(cases.apply(loss, less, residuals), whole)


@every
def test_a_pair_depends_on_its_batch_exactly_where_the_loss_needs_the_global_batch(name):
  errors, residuals = cases.random_pairs()
  # A policy that is better than its reference, for kto counts a mean below 0 as 0.
  errors = errors._replace(policy_w=errors.policy_w / 16, policy_l=errors.policy_l / 16)
  other = PairErrors(*(np.array(x) for x in errors))
  for field in other:
    field[1:] = field[1:] ** 2
  run = cases.compiled(name)
  same = run(errors, residuals)[0][0] == run(other, residuals)[0][0]
  assert same != losses.requirements(cases.bind(name)).needs_global_batch


@every
@given(seed=SEEDS)
@quick
def test_pairs_may_come_in_any_order(name, seed):
  errors, residuals = cases.random_pairs(seed)
  order = np.random.default_rng(seed).permutation(cases.PAIRS)
  run = cases.compiled(name)
  moved = jax.tree.map(lambda x: x[order], (errors, residuals))
  np.testing.assert_allclose(run(*moved)[0], run(errors, residuals)[0][order], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
  "name", [n for n in cases.NAMES if losses.LOSSES[n].requirements.reference]
)
@given(errors=ERRORS, shift=st.integers(0, 4096))
@quick
def test_an_error_added_to_policy_and_reference_changes_nothing(name, errors, shift):
  more = np.float32(shift / 1024)
  shifted = errors._replace(policy_w=errors.policy_w + more, reference_w=errors.reference_w + more)
  run = cases.compiled(name)
  np.testing.assert_array_equal(run(shifted, RESIDUALS)[0], run(errors, RESIDUALS)[0])


@pytest.mark.parametrize("name", ["alpha_dpo", "dpo", "f_dpo", "hinge", "mapo", "sft"])
@given(errors=ERRORS, worse=st.integers(1, 1024))
@quick
def test_a_worse_winner_costs_more_and_a_worse_loser_less(name, errors, worse):
  more = np.float32(worse / 1024)
  changes = {} if name != "dpo" else {"label_smoothing": 0.0}
  run = cases.compiled(name, **changes)
  here = run(errors, RESIDUALS)[0] * (1 - 1e-5)
  assert np.all(run(errors._replace(policy_w=errors.policy_w + more), RESIDUALS)[0] >= here)
  here = run(errors, RESIDUALS)[0] * (1 + 1e-5) + 1e-30
  assert np.all(run(errors._replace(policy_l=errors.policy_l + more), RESIDUALS)[0] <= here)


@every
@given(errors=ERRORS)
@quick
def test_values_and_gradients_are_finite(name, errors):
  actual = cases.compiled(name)(errors, RESIDUALS)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(actual))


@pytest.mark.parametrize("name", [n for n in cases.NAMES if "beta" in cases.HYPERPARAMETERS[n]])
def test_values_and_gradients_are_finite_for_logits_of_ten_thousand(name):
  # A difference of ±1 between errors, at a beta that makes ±10,000 of it.
  one, zero = jnp.ones(cases.PAIRS), jnp.zeros(cases.PAIRS)
  changes = {"f_dpo": {"beta": 2e4 / 15}, "mapo": {"num_timesteps": 20_000}}
  run = cases.compiled(name, **changes.get(name, {"beta": 2e4}))
  for errors in (PairErrors(one, zero, zero, zero), PairErrors(zero, one, zero, zero)):
    actual = run(errors, RESIDUALS)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(actual))


@pytest.mark.parametrize("name", [n for n in cases.NAMES if "beta" in cases.HYPERPARAMETERS[n]])
@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), "5000"])
def test_a_beta_that_is_not_positive_is_refused(name, beta):
  with pytest.raises(ValueError, match="beta"):
    cases.apply(cases.bind(name, beta=beta), *cases.random_pairs())


@every
def test_the_diagnostics_rank_a_pair_as_its_errors_do(name):
  errors, residuals = cases.random_pairs()
  loss = cases.bind(name)
  _, diagnostics = loss(errors, residuals) if losses.requirements(loss).residuals else loss(errors)
  w, l, rw, rl = (np.float64(x) for x in errors)
  better = (l - w) if name in ("mapo",) else (l - rl) - (w - rw)
  np.testing.assert_array_equal(np.sign(diagnostics.logit), np.sign(better))
  np.testing.assert_allclose(
    diagnostics.reward_w - diagnostics.reward_l, diagnostics.logit, rtol=1e-5
  )
  np.testing.assert_array_equal(diagnostics.accuracy, better > 0)


def test_a_function_without_requirements_is_refused():
  with pytest.raises(ValueError, match="does not say what it needs"):
    losses.requirements(lambda errors: errors.policy_w)


def test_a_wrapper_has_the_requirements_of_its_base():
  inside = losses.requirements(cases.bind("sdpo", base=cases.bind("kto")))
  assert inside[:4] == (True, True, True, True)
  assert not losses.requirements(cases.bind("sdpo", base=cases.bind("mapo"))).reference
