"""The errors of a pair, their logit, and errors for wrong inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors

RNG = np.random.default_rng(0)
ERRORS = PairErrors(*RNG.uniform(0.05, 0.3, (4, 7)).astype(np.float32))


def test_the_denoising_error_is_the_mean_of_squares_over_all_axes_but_the_first():
  prediction, target = RNG.normal(size=(2, 3, 5, 4, 2)).astype(np.float32)
  expected = ((prediction.astype(np.float64) - target) ** 2).reshape(3, -1).mean(1)
  np.testing.assert_allclose(losses.denoising_error(prediction, target), expected, rtol=1e-6)


def test_the_denoising_error_of_bfloat16_inputs_is_reduced_in_float32():
  prediction, target = (jnp.asarray(x, jnp.bfloat16) for x in RNG.normal(size=(2, 2, 64, 64, 4)))
  error = losses.denoising_error(prediction, target)
  exact = ((np.float64(prediction) - np.float64(target)) ** 2).reshape(2, -1).mean(1)
  assert error.dtype == jnp.float32
  np.testing.assert_allclose(error, exact, rtol=1e-6)


def test_the_denoising_error_refuses_two_shapes():
  with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
    losses.denoising_error(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_the_logit_follows_the_sign_convention():
  _, diagnostics = losses.dpo(ERRORS, beta=40.0)
  w, l, rw, rl = (np.float64(x) for x in ERRORS)
  np.testing.assert_allclose(diagnostics.logit, -20.0 * ((w - l) - (rw - rl)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(diagnostics.reward_w, -20.0 * (w - rw), rtol=1e-5)
  np.testing.assert_allclose(diagnostics.reward_l, -20.0 * (l - rl), rtol=1e-5)
  np.testing.assert_array_equal(diagnostics.accuracy, (diagnostics.logit > 0).astype(np.float32))


def test_a_tie_counts_one_half():
  ones = jnp.ones(3)
  _, diagnostics = losses.dpo(PairErrors(ones, ones, ones, ones), beta=5000.0)
  np.testing.assert_array_equal(diagnostics.logit, np.zeros(3))
  np.testing.assert_array_equal(diagnostics.accuracy, np.full(3, 0.5))


def test_the_accuracy_of_a_nan_logit_is_nan():
  bad = jnp.array([jnp.nan])
  _, diagnostics = losses.dpo(PairErrors(bad, bad, bad, bad), beta=1.0)
  assert np.isnan(diagnostics.accuracy[0])


def test_the_logit_keeps_float32_accuracy_where_errors_are_large_and_their_change_is_small():
  w = np.array([0.9000001, 0.7], np.float32)
  l = np.array([0.3, 0.2000001], np.float32)
  rw, rl = np.array([0.9, 0.7], np.float32), np.array([0.3, 0.2], np.float32)
  _, diagnostics = losses.dpo(PairErrors(w, l, rw, rl), beta=5000.0)
  exact = -2500.0 * ((np.float64(w) - rw) - (np.float64(l) - rl))
  np.testing.assert_allclose(diagnostics.logit, exact, rtol=1e-6)


def test_the_loss_of_a_batch_is_that_of_its_pairs_one_by_one():
  for loss in (
    lambda e: losses.dpo(e, beta=30.0, label_smoothing=0.1),
    lambda e: losses.dmpo(e, beta=30.0, alpha=0.01),
  ):
    whole = loss(ERRORS)[0]
    single = [loss(jax.tree.map(lambda x, i=i: x[i : i + 1], ERRORS))[0][0] for i in range(7)]
    np.testing.assert_allclose(whole, single, rtol=1e-6)


@pytest.mark.parametrize("field", ["policy_l", "reference_w", "reference_l"])
@pytest.mark.parametrize("name", ["dpo", "dmpo"])
def test_a_missing_field_is_named(name, field):
  hyperparameters = {"dpo": {"beta": 1.0}, "dmpo": {"beta": 1.0, "alpha": 0.1}}[name]
  with pytest.raises(ValueError, match=field):
    losses.LOSSES[name](ERRORS._replace(**{field: None}), **hyperparameters)


@pytest.mark.parametrize("field", PairErrors._fields)
def test_a_field_of_another_length_is_named_with_the_shapes(field):
  with pytest.raises(ValueError, match=r"\(5,\)"):
    losses.dpo(ERRORS._replace(**{field: jnp.zeros(5)}), beta=1.0)


def test_errors_that_are_no_vector_are_refused():
  with pytest.raises(ValueError, match=r"policy_w.*\(7, 1\)"):
    losses.sft(PairErrors(jnp.zeros((7, 1))))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_errors_below_float32_are_refused(dtype):
  with pytest.raises(ValueError, match=r"reference_w is .*float32"):
    losses.dpo(ERRORS._replace(reference_w=jnp.zeros(7, dtype)), beta=1.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf"), "5000", True, None])
@pytest.mark.parametrize("name", ["dpo", "dmpo"])
def test_a_beta_that_is_not_positive_is_refused_by_name(name, beta):
  more = {"alpha": 0.01} if name == "dmpo" else {}
  with pytest.raises(ValueError, match="beta"):
    losses.LOSSES[name](ERRORS, beta=beta, **more)


def test_every_loss_is_listed_under_its_own_name():
  assert all(name == function.__name__ for name, function in losses.LOSSES.items())
