"""Held-out evaluation: what a row says of given errors, when it warns, and what is measured."""

import functools
import math

import numpy as np
import pytest

from dmpo_jax import losses
from dmpo_jax.training.monitor import held_out_errors

DPO = functools.partial(losses.dpo, beta=200.0)


def _look(bins=3, pairs=5, images=2, seed=0, moved=0.01) -> held_out_errors.Look:
  rng = np.random.default_rng(seed)
  reference = rng.uniform(0.1, 0.5, (bins, pairs, images)).astype(np.float32)
  policy = reference + moved * rng.normal(size=reference.shape).astype(np.float32)
  return held_out_errors.Look(policy, reference, np.ones((bins, pairs), np.float32))


def test_a_row_says_what_plain_loops_over_pairs_and_bins_find():
  look = _look()
  found = held_out_errors.row(look, DPO, 1000)
  winners, margins, right = [], [], []
  for i in range(5):
    each_w = [float(look.policy[k, i, 0]) - float(look.reference[k, i, 0]) for k in range(3)]
    each_l = [float(look.policy[k, i, 1]) - float(look.reference[k, i, 1]) for k in range(3)]
    winners.append(sum(each_w) / 3)
    margins += [b - a for a, b in zip(each_w, each_l, strict=True)]
    right += [b > a for a, b in zip(each_w, each_l, strict=True)]
  mean = sum(winners) / 5
  spread = math.sqrt(sum((x - mean) ** 2 for x in winners) / 4)
  assert found["winner_change"] == pytest.approx(mean, rel=1e-4)
  assert found["winner_change_se"] == pytest.approx(spread / math.sqrt(5), rel=1e-4)
  assert found["margin"] == pytest.approx(sum(margins) / 15, rel=1e-4)
  assert found["accuracy"] == pytest.approx(sum(right) / 15)
  assert found["logit"] == pytest.approx(100 * found["margin"], rel=1e-4)


def test_bins_cover_all_timesteps_and_average_to_the_whole():
  found = held_out_errors.row(_look(), DPO, 1000)
  assert [(part["from"], part["to"]) for part in found["bins"]] == [
    (0, 332),
    (333, 665),
    (666, 999),
  ]
  for name in ("winner", "loser_reference", "margin", "accuracy", "logit", "gradient_factor"):
    mean = np.mean([part[name] for part in found["bins"]])
    assert found[name] == pytest.approx(mean, rel=1e-5)


def test_where_policy_and_reference_agree_nothing_has_changed_and_every_pair_is_a_tie():
  look = _look(moved=0.0)
  found = held_out_errors.row(look, functools.partial(losses.dmpo, beta=1000.0, alpha=0.01), 1000)
  assert found["winner_change"] == found["winner_change_se"] == found["margin"] == 0
  assert found["accuracy"] == 0.5
  assert found["gradient_factor"] == pytest.approx(1.148780, abs=1e-6)
  assert found["winner_rises"] == 0


OBJECTIVES = {
  "dpo": DPO,
  "dmpo": functools.partial(losses.dmpo, beta=200.0, alpha=0.05),
  "ipo": functools.partial(losses.ipo, beta=200.0),
  "kto": functools.partial(losses.kto, beta=200.0),
  "mapo": functools.partial(losses.mapo, beta=0.1, snr=0.5, num_timesteps=1000),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_factor_is_the_slope_of_the_loss_over_that_of_the_logit(name):
  loss, look = OBJECTIVES[name], _look(bins=1, pairs=4)

  def at(shift: float) -> tuple[np.ndarray, np.ndarray]:
    # One pair at a time moves: the others, and with them statistics of the batch, stay.
    lost, logits = [], []
    for i in range(4):
      sides = [look.policy[0, :, 0], look.policy[0, :, 1].copy()]
      sides[1][i] += shift
      both = (look.reference[0, :, 0], look.reference[0, :, 1])
      found, diagnostics = loss(losses.PairErrors(*sides, *both))
      lost.append(float(found[i]))
      logits.append(float(diagnostics.logit[i]))
    return np.array(lost), np.array(logits)

  (up, z_up), (down, z_down) = at(2e-3), at(-2e-3)
  expected = np.mean(-(up - down) / (z_up - z_down))
  tolerance = 0.05 if name == "kto" else 0.01  # whose statistic moves with the pair
  assert held_out_errors.row(look, loss, 1000)["gradient_factor"] == pytest.approx(
    expected, rel=tolerance
  )


def test_timestep_weights_enter_the_logit_and_not_the_errors():
  look = _look()
  plain = held_out_errors.row(look, DPO, 1000)
  half = held_out_errors.row(look._replace(weights=look.weights / 2), DPO, 1000)
  assert half["logit"] == pytest.approx(plain["logit"] / 2, rel=1e-4)
  assert half["margin"] == plain["margin"]


def test_a_wrapper_shows_its_base_and_objectives_without_a_logit_of_the_errors_none():
  look = _look()
  wrapped = functools.partial(losses.sdpo, base=DPO, mu=0.9)
  assert held_out_errors.row(look, wrapped, 1000) == held_out_errors.row(look, DPO, 1000)
  for loss in (losses.sft, functools.partial(losses.dspo, beta=0.001)):
    found = held_out_errors.row(look, loss, 1000)
    assert "margin" in found
    assert "gradient_factor" not in found


def test_single_images_have_a_winner_alone():
  found = held_out_errors.row(_look(images=1), losses.sft, 1000)
  assert {"winner_change", "winner_rises"} <= found.keys()
  assert not {"loser", "margin", "accuracy"} & found.keys()


def test_noise_is_taken_for_a_rise_once_in_some_hundred_looks_and_a_rise_is_seen():
  rng = np.random.default_rng(0)
  seen = {0.0: 0, 0.6: 0}
  for shift in seen:
    for _ in range(2000):
      change = rng.normal(shift, 1.0, 64)
      seen[shift] += held_out_errors.rises(change.mean(), change.std(ddof=1) / 8)
  assert seen[0.0] <= 12  # at 3 standard errors of 64 pairs: one in 500
  assert seen[0.6] > 1800


def test_a_rise_is_told_with_its_size_and_where_it_is_largest():
  look = _look(moved=0.0)
  look.policy[2, :, 0] += np.float32(0.03)
  found = held_out_errors.row(look, DPO, 1000)
  assert found["winner_rises"] == 1
  assert "by 0.01 (" in (said := held_out_errors.warning(40, found))
  assert "timesteps 666 to 999" in said


def test_an_error_that_is_no_number_has_risen():
  assert held_out_errors.rises(math.nan, math.nan)
  assert held_out_errors.rises(math.inf, math.nan)
