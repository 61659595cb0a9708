"""MaPO in both forms against exact formulas, and its limits."""

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors
from tests.losses import cases

CODE = {"beta": 0.1, "snr": 0.5, "num_timesteps": 1000}
PAPER = {"beta": 8.0, "form": "paper"}
W = np.array([0.0, 1e-6, 1e-3, 0.1, 0.3, 1.0, 5.0, 150.0, 3e4], np.float32)
L = np.array([1e-7, 0.0, 1.01e-3, 0.12, 0.3, 0.9, 2.0, 200.0, 1.0], np.float32)


def exact(w, l, form):
  """Losses and arguments of σ in forty digits."""

  def phi(x):
    return x / mpmath.expm1(x) if x else mpmath.mpf(1)

  actual, arguments = [], []
  with mpmath.workdps(40):
    for a, b in zip(map(float, w), map(float, l), strict=True):
      if form == "code":
        argument, weight = 1000 * (phi(a / 2) - phi(b / 2)), mpmath.mpf("0.1")
      else:
        argument, weight = phi(a) ** 8 - phi(b) ** 8, mpmath.mpf(1) / 8
      arguments.append(float(argument))
      actual.append(float(a + weight * mpmath.log1p(mpmath.exp(-argument))))
  return np.array(actual), np.array(arguments)


@pytest.mark.parametrize(("form", "options"), [("code", CODE), ("paper", PAPER)])
def test_loss_and_logit_agree_with_the_exact_formula(form, options):
  loss, diagnostics = losses.mapo(PairErrors(W, L), **options)
  wanted, argument = exact(W, L, form)
  np.testing.assert_allclose(loss, wanted, rtol=2e-6)
  # Relative to the larger of its two terms, where both lie beside 1.
  scale = np.abs(diagnostics.reward_w) + np.abs(diagnostics.reward_l)
  assert np.all(np.abs(diagnostics.logit - argument) <= 1e-6 * scale)


@pytest.mark.parametrize("options", [CODE, PAPER])
def test_equal_errors_give_the_error_and_a_constant(options):
  weight = 0.1 if options is CODE else 1 / 8
  loss, diagnostics = losses.mapo(PairErrors(W, W), **options)
  np.testing.assert_allclose(loss, W + weight * np.log(2), rtol=1e-6)
  np.testing.assert_array_equal(diagnostics.accuracy, np.full(len(W), 0.5))


@pytest.mark.parametrize("options", [CODE, PAPER])
def test_swapping_a_pair_changes_the_preference_term_by_its_argument(options):
  weight = 0.1 if options is CODE else 1 / 8
  (loss, diagnostics), (swapped, _) = (
    losses.mapo(PairErrors(*x), **options) for x in ((W, L), (L, W))
  )
  wanted = -weight * np.float64(diagnostics.logit)
  np.testing.assert_allclose((loss - W) - (swapped - L), wanted, rtol=1e-4, atol=2e-3)


def test_for_small_errors_the_preference_term_is_dpo_without_reference():
  w, l = jnp.array([1e-3, 2e-3, 5e-3]), jnp.array([3e-3, 2e-3, 1e-3])
  zero = jnp.zeros(3)
  actual, _ = losses.mapo(PairErrors(w, l), **CODE)
  wanted, _ = losses.dpo(PairErrors(w, l, zero, zero), beta=500.0)
  np.testing.assert_allclose((actual - w) / 0.1, wanted, rtol=2e-3)


def test_the_slope_at_equal_errors_is_that_of_the_closed_form():
  e = 0.2
  slope = cases.grad(lambda w: losses.mapo(PairErrors(w, jnp.full(1, e)), **CODE)[0][0])(
    jnp.full(1, e)
  )
  x = e / 2
  phi_slope = (np.expm1(x) - x * np.exp(x)) / np.expm1(x) ** 2
  np.testing.assert_allclose(slope, [1 - 0.1 * 0.5 * 1000 * 0.5 * phi_slope], rtol=1e-5)


@pytest.mark.parametrize("options", [CODE, PAPER])
def test_gradients_are_finite_from_zero_to_the_largest_error(options):
  errors = PairErrors(jnp.asarray(W), jnp.asarray(L))
  gradient = cases.grad(lambda e: losses.mapo(e, **options)[0].sum())(errors)
  assert all(np.all(np.isfinite(x)) for x in gradient if x is not None)


@pytest.mark.parametrize("options", [{**CODE, "num_timesteps": 5}, PAPER])
def test_gradients_agree_with_finite_differences(options):
  pair = PairErrors(jnp.array([0.3, 0.99, 2.0]), jnp.array([0.5, 0.2, 1.5]))

  def run(w, l):
    return losses.mapo(PairErrors(w, l), **options)[0]

  check_grads(run, (pair.policy_w, pair.policy_l), order=1, modes=["rev"], eps=1e-3)


def test_the_reference_is_ignored():
  errors, _ = cases.random_pairs()
  diagnostics, _ = losses.mapo(errors._replace(reference_w=None, reference_l=None), **CODE)
  np.testing.assert_array_equal(losses.mapo(errors, **CODE)[0], diagnostics)


def test_the_form_of_the_paper_refuses_hyperparameters_of_the_other():
  with pytest.raises(ValueError, match="do not occur in mapo's form 'paper'"):
    losses.mapo(PairErrors(W, L), beta=8.0, snr=0.5, form="paper")


@pytest.mark.parametrize("key", ["snr", "num_timesteps"])
def test_the_form_of_the_code_needs_snr_and_num_timesteps(key):
  with pytest.raises(ValueError, match=key):
    losses.mapo(PairErrors(W, L), **{**CODE, key: None})


def test_an_unknown_form_is_refused():
  with pytest.raises(ValueError, match="unknown form 'papper'; did you mean 'paper'"):
    losses.mapo(PairErrors(W, L), beta=8.0, form="papper")
