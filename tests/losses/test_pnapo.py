"""PNAPO's factor of beta against its formula."""

import numpy as np

from dmpo_jax import losses

GAPS = np.array([-2.0, -0.003, 0.0, 0.001, 0.5, 40.0], np.float32)


def expected(gap, step, *, temperature, start, end):
  gap, step = np.float64(gap), np.float64(step)
  progress = np.clip((step - start) / (end - start), 0, 1)
  return (2 / (1 + np.exp(-np.abs(gap) / temperature)) - 1) * (0.75 + np.cos(np.pi * progress) / 4)


def test_the_factor_agrees_with_the_float64_formula():
  for step in (0, 10, 17, 25, 40, 41, 10**6):
    ours = losses.beta_factor(GAPS, np.int32(step), temperature=0.3, decay_start=10, decay_end=40)
    formula = expected(GAPS, step, temperature=0.3, start=10, end=40)
    np.testing.assert_allclose(ours, formula, rtol=2e-6)


def test_beta_is_full_at_the_start_of_the_decay_and_a_half_at_its_end():
  at = [losses.beta_factor(None, np.int32(n), decay_start=10, decay_end=40) for n in (10, 25, 40)]
  np.testing.assert_allclose(at, [1, 0.75, 0.5], rtol=1e-6)


def test_without_gap_and_decay_beta_stays():
  assert losses.beta_factor(None, np.int32(5)) == 1
