"""Controls around losses, against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import losses
from dmpo_jax.losses import Residuals
from tests.losses import cases
from tests.losses.cases import apply

DPO = functools.partial(losses.dpo, beta=30.0)
ERRORS, RESIDUALS = cases.random_pairs()


def slopes(loss):
  return cases.grad(lambda e: apply(loss, e, RESIDUALS).sum())(ERRORS)


@pytest.mark.parametrize("name", cases.NAMES)
def test_without_controls_every_loss_is_itself(name):
  base = cases.bind(name)
  assert losses.control(base) is base


@pytest.mark.parametrize("name", ["dmpo", "dspo", "sdpo", "mapo", "contrastive"])
def test_the_sft_weight_adds_the_preferred_error(name):
  base = cases.bind(name)
  actual = apply(losses.control(base, sft_weight=0.3), ERRORS, RESIDUALS)
  expected = apply(base, ERRORS, RESIDUALS) + 0.3 * ERRORS.policy_w
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_sft_weight_follows_a_soft_label():
  loss = losses.control(DPO, sft_weight=2.0)
  label = jnp.array([0.0, 0.25, 0.5, 1.0])
  actual, _ = losses.soft_label_loss(loss, ERRORS, label)
  plain, _ = losses.soft_label_loss(DPO, ERRORS, label)
  sft = label * ERRORS.policy_w + (1 - label) * ERRORS.policy_l
  np.testing.assert_allclose(actual, plain + 2 * sft, rtol=1e-5)


def test_the_anchor_is_the_mean_squared_distance_from_the_reference():
  loss = losses.control(DPO, anchor_weight=0.8)
  w, l, rw, rl = (np.float64(x) for x in RESIDUALS)
  away = ((w - rw) ** 2).mean((1, 2)) + ((l - rl) ** 2).mean((1, 2))
  assert losses.requirements(loss).residuals
  np.testing.assert_allclose(apply(loss, ERRORS, RESIDUALS), DPO(ERRORS)[0] + 0.4 * away, rtol=1e-5)


def test_the_anchor_pulls_the_policy_towards_the_reference():
  loss = losses.control(cases.bind("sft"), anchor_weight=1.0)

  def of(residuals):
    errors = losses.PairErrors(*(losses.denoising_error(x, jnp.zeros_like(x)) for x in residuals))
    return loss(errors, residuals)[0].sum() - errors.policy_w.sum()

  slope = cases.grad(of)(RESIDUALS)
  expected = (RESIDUALS.policy_l - RESIDUALS.reference_l) / 6  # weight/2 · 2/d
  np.testing.assert_allclose(slope.policy_l, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["dpo", "kto", "linear_dpo"])
def test_gradient_scales_change_the_gradient_of_their_side_alone(name):
  base = cases.bind(name)
  loss = losses.control(base, preferred_gradient_scale=2.0, rejected_gradient_scale=0.25)
  np.testing.assert_array_equal(apply(loss, ERRORS, RESIDUALS), apply(base, ERRORS, RESIDUALS))
  scaled, plain = slopes(loss), slopes(base)
  np.testing.assert_allclose(scaled.policy_w, 2 * plain.policy_w, rtol=1e-5)
  np.testing.assert_allclose(scaled.policy_l, plain.policy_l / 4, rtol=1e-5)


def test_gradient_scales_reach_losses_of_residuals():
  base = cases.bind("contrastive")

  def slope(loss):
    return cases.grad(lambda r: loss(ERRORS, r)[0].sum())(RESIDUALS)

  scaled, plain = slope(losses.control(base, rejected_gradient_scale=0.5)), slope(base)
  np.testing.assert_allclose(scaled.policy_w, plain.policy_w, rtol=1e-6)
  np.testing.assert_allclose(scaled.policy_l, plain.policy_l / 2, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("beta", [0.01, 30.0])
def test_the_automatic_beta_gives_a_pair_of_mean_logit_the_factor(factor, beta):
  loss = losses.control(
    functools.partial(losses.dpo, beta=beta), auto_gradient_factor=factor, auto_scale_max=1e6
  )
  _, diagnostics = loss(ERRORS)
  size = np.abs(np.float64(diagnostics.logit)).mean()
  np.testing.assert_allclose(1 / (1 + np.exp(size)), factor, rtol=1e-5)


def test_the_automatic_beta_is_dpo_at_that_beta():
  loss = losses.control(DPO, auto_gradient_factor=0.2)
  scale = float(loss(ERRORS)[1].beta_scale[0])
  other = functools.partial(losses.dpo, beta=30.0 * scale)
  np.testing.assert_allclose(loss(ERRORS)[0], other(ERRORS)[0], rtol=1e-5)
  for actual, expected in zip(slopes(loss), slopes(other), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_the_automatic_beta_scales_the_residuals_of_a_wrapper():
  base = functools.partial(losses.sdpo, base=DPO, mu=0.9)
  loss = losses.control(base, auto_gradient_factor=0.2)
  scale = float(loss(ERRORS, RESIDUALS)[1].beta_scale[0])
  other = functools.partial(
    losses.sdpo, base=functools.partial(losses.dpo, beta=30 * scale), mu=0.9
  )
  for actual, expected in zip(slopes(loss), slopes(other), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_at_policy_equal_to_reference_the_automatic_beta_is_its_bound():
  errors, _ = cases.random_pairs(near=0.0)
  loss = losses.control(DPO, auto_gradient_factor=0.2, auto_scale_max=7.0)
  value, diagnostics = loss(errors)
  np.testing.assert_array_equal(diagnostics.beta_scale, 7.0)
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_the_automatic_beta_needs_the_global_batch():
  assert losses.requirements(losses.control(DPO, auto_gradient_factor=0.2)).needs_global_batch
  assert not losses.requirements(losses.control(DPO, sft_weight=1.0)).needs_global_batch


def test_controls_combine():
  loss = losses.control(
    DPO, auto_gradient_factor=0.2, sft_weight=0.1, anchor_weight=0.3, rejected_gradient_scale=0.5
  )
  automatic = losses.control(DPO, auto_gradient_factor=0.2)
  anchored = losses.control(automatic, sft_weight=0.1, anchor_weight=0.3)
  np.testing.assert_allclose(
    apply(loss, ERRORS, RESIDUALS), apply(anchored, ERRORS, RESIDUALS), rtol=1e-6
  )
  jax.jit(lambda e, r: apply(loss, e, r))(ERRORS, RESIDUALS)


@pytest.mark.parametrize(
  ("name", "controls", "message"),
  [
    ("dpo", {"sft_wait": 1.0}, "unknown control of a loss 'sft_wait'; did you mean 'sft_weight'"),
    ("dpo", {"sft_weight": -1.0}, r"sft_weight must be a number in \[0, 1e\+30\], got -1.0"),
    ("dpo", {"anchor_weight": float("nan")}, "anchor_weight must be a number"),
    ("dpo", {"auto_gradient_factor": 0.5}, r"auto_gradient_factor must be a number in \[0, 0.5\)"),
    ("dpo", {"auto_scale_max": 2.0}, "auto_scale_max has no effect without auto_gradient_factor"),
    ("contrastive", {"auto_gradient_factor": 0.2}, "no meaning for the loss 'contrastive'"),
    ("sft", {"auto_gradient_factor": 0.2}, "no meaning for the loss 'sft'"),
    (
      "dpo",
      {"auto_gradient_factor": 0.2, "auto_scale_min": 3.0, "auto_scale_max": 2.0},
      "auto_scale_min is 3, above auto_scale_max 2",
    ),
  ],
)
def test_a_wrong_control_is_named(name, controls, message):
  with pytest.raises(ValueError, match=message):
    losses.control(cases.bind(name), **controls)


def test_an_anchor_needs_the_reference():
  loss = losses.control(cases.bind("sft"), anchor_weight=1.0)
  assert losses.requirements(loss).reference
  with pytest.raises(ValueError, match="reference_w"):
    loss(ERRORS._replace(reference_w=None, reference_l=None), Residuals(*RESIDUALS))
