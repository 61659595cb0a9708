"""Held-out evaluation: metrics of given errors, and the warning about a rise."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from dmpo_jax import losses
from dmpo_jax.training.monitor import held_out_errors
from dmpo_jax.training.monitor.held_out_errors import HeldOutErrors, summarise

DPO = functools.partial(losses.dpo, beta=200.0)


def _errors(bins=3, pairs=5, images=2, seed=0, moved=0.01) -> HeldOutErrors:
  rng = np.random.default_rng(seed)
  reference = rng.uniform(0.1, 0.5, (bins, pairs, images)).astype(np.float32)
  policy = reference + moved * rng.normal(size=reference.shape).astype(np.float32)
  return HeldOutErrors(policy, reference, np.ones((bins, pairs), np.float32))


def _summary(errors: HeldOutErrors, loss: Callable) -> dict:
  """Metrics record of errors over 1000 timesteps."""
  edges = np.linspace(0, 1000, len(errors.policy) + 1).astype(int)
  return summarise(errors, loss, edges)


def test_metrics_equal_plain_loops_over_pairs_and_bins():
  errors = _errors()
  record = _summary(errors, DPO)
  changes, margins, correct = [], [], []
  for i in range(5):
    each_w = [float(errors.policy[k, i, 0]) - float(errors.reference[k, i, 0]) for k in range(3)]
    each_l = [float(errors.policy[k, i, 1]) - float(errors.reference[k, i, 1]) for k in range(3)]
    changes.append(sum(each_w) / 3)
    margins += [b - a for a, b in zip(each_w, each_l, strict=True)]
    correct += [b > a for a, b in zip(each_w, each_l, strict=True)]
  mean = sum(changes) / 5
  spread = math.sqrt(sum((x - mean) ** 2 for x in changes) / 4)
  assert record["preferred_change"] == pytest.approx(mean, rel=1e-4)
  assert record["preferred_change_se"] == pytest.approx(spread / math.sqrt(5), rel=1e-4)
  assert record["margin"] == pytest.approx(sum(margins) / 15, rel=1e-4)
  assert record["accuracy"] == pytest.approx(sum(correct) / 15)
  assert record["logit"] == pytest.approx(100 * record["margin"], rel=1e-4)


def test_bins_cover_all_timesteps_and_average_to_the_overall_metrics():
  record = _summary(_errors(), DPO)
  assert [(part["from"], part["to"]) for part in record["bins"]] == [
    (0, 332),
    (333, 665),
    (666, 999),
  ]
  for name in ("preferred", "rejected_reference", "margin", "accuracy", "logit", "gradient_factor"):
    mean = np.mean([part[name] for part in record["bins"]])
    assert record[name] == pytest.approx(mean, rel=1e-5)


def test_equal_policy_and_reference_have_no_change_and_every_pair_is_a_tie():
  errors = _errors(moved=0.0)
  record = _summary(errors, functools.partial(losses.dmpo, beta=1000.0, alpha=0.01))
  assert record["preferred_change"] == record["preferred_change_se"] == record["margin"] == 0
  assert record["accuracy"] == 0.5
  assert record["gradient_factor"] == pytest.approx(1.148780, abs=1e-6)
  assert record["preferred_rises"] == 0


LOSSES = {
  "dpo": DPO,
  "dmpo": functools.partial(losses.dmpo, beta=200.0, alpha=0.05),
  "ipo": functools.partial(losses.ipo, beta=200.0),
  "kto": functools.partial(losses.kto, beta=200.0),
  "mapo": functools.partial(losses.mapo, beta=0.1, snr=0.5, num_timesteps=1000),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_factor_is_the_derivative_of_the_loss_over_that_of_the_logit(name):
  loss, errors = LOSSES[name], _errors(bins=1, pairs=4)

  def at(shift: float) -> tuple[np.ndarray, np.ndarray]:
    # One pair at a time is shifted: the other pairs, and the statistics of the batch, stay.
    values, logits = [], []
    for i in range(4):
      sides = [errors.policy[0, :, 0], errors.policy[0, :, 1].copy()]
      sides[1][i] += shift
      reference = (errors.reference[0, :, 0], errors.reference[0, :, 1])
      per_pair, diagnostics = loss(losses.PairErrors(*sides, *reference))
      values.append(float(per_pair[i]))
      logits.append(float(diagnostics.logit[i]))
    return np.array(values), np.array(logits)

  (up, z_up), (down, z_down) = at(2e-3), at(-2e-3)
  expected = np.mean(-(up - down) / (z_up - z_down))
  tolerance = 0.05 if name == "kto" else 0.01  # its batch statistic depends on the pair
  assert _summary(errors, loss)["gradient_factor"] == pytest.approx(expected, rel=tolerance)


def test_timestep_weights_enter_the_logit_and_not_the_errors():
  errors = _errors()
  plain = _summary(errors, DPO)
  half = _summary(errors._replace(weights=errors.weights / 2), DPO)
  assert half["logit"] == pytest.approx(plain["logit"] / 2, rel=1e-4)
  assert half["margin"] == plain["margin"]


def test_a_wrapper_has_the_gradient_factor_of_its_base_and_other_losses_may_have_none():
  errors = _errors()
  wrapped = functools.partial(losses.sdpo, base=DPO, mu=0.9)
  assert _summary(errors, wrapped) == _summary(errors, DPO)
  for loss in (losses.sft, functools.partial(losses.dspo, beta=0.001)):
    record = _summary(errors, loss)
    assert "margin" in record
    assert "gradient_factor" not in record


def test_single_images_have_winner_metrics_only():
  record = _summary(_errors(images=1), losses.sft)
  assert {"preferred_change", "preferred_rises"} <= record.keys()
  assert not {"rejected", "margin", "accuracy"} & record.keys()


def test_noise_counts_as_a_rise_in_one_of_some_hundred_evaluations_and_a_rise_is_detected():
  rng = np.random.default_rng(0)
  detected = {0.0: 0, 0.6: 0}
  for shift in detected:
    for _ in range(2000):
      change = rng.normal(shift, 1.0, 64)
      detected[shift] += held_out_errors.rises(change.mean(), change.std(ddof=1) / 8)
  assert detected[0.0] <= 12  # at 3 standard errors of 64 pairs: one in 500
  assert detected[0.6] > 1800


def test_saturation_is_the_fraction_of_pairs_below_a_part_of_the_first_gradient_factor():
  errors = _errors(pairs=200, moved=0.03)
  change = np.float64(errors.policy) - errors.start
  z = -100 * (change[..., 0] - change[..., 1])
  record = _summary(errors, DPO)
  saturated = 1 / (1 + np.exp(z)) < 0.05 * 0.5
  assert 0 < saturated.mean() < 0.9
  assert record["saturation"] == pytest.approx(saturated.mean(), abs=1e-3)
  assert record["saturates"] == 0
  edges = np.array([0, 300, 600, 1000])
  low = summarise(errors, DPO, edges, held_out_errors.Thresholds(saturated=0.01))
  assert low["saturates"] == 1


def test_drift_is_the_mean_change_of_the_errors_over_their_mean_at_the_start():
  errors = _errors()
  expected = np.abs(errors.policy - errors.start).mean() / errors.start.mean()
  record = _summary(errors, DPO)
  assert record["drift"] == pytest.approx(expected, rel=1e-5)
  assert record["drifts"] == 0
  assert _summary(errors._replace(policy=errors.start * np.float32(1.6)), DPO)["drifts"] == 1


def test_with_a_reference_that_moves_the_logit_is_its_own_and_the_change_is_from_the_start():
  errors = _errors()
  moving = errors.start + np.float32(0.5) * (errors.policy - errors.start)
  frozen, moved = _summary(errors, DPO), _summary(errors._replace(moving=moving), DPO)
  for name in ("preferred_change", "preferred_reference", "margin", "accuracy"):
    assert moved[name] == frozen[name]
  assert moved["logit"] == pytest.approx(frozen["logit"] / 2, rel=1e-3)
  assert moved["drift"] == pytest.approx(frozen["drift"] / 2, rel=1e-5)


def test_a_change_of_nan_counts_as_a_rise():
  assert held_out_errors.rises(math.nan, math.nan)
  assert held_out_errors.rises(math.inf, math.nan)
