"""Scores of the samples of one model, as the report takes them."""

from collections.abc import Callable

import numpy as np

from dmpo_jax.data.toy import digits
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import statistics


def measure(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  predict: Callable[[np.ndarray], np.ndarray],
  baseline: np.ndarray | None = None,
  resamples: int = statistics.RESAMPLES,
  seed: int = 0,
) -> dict:
  """Ink, win rate, digit accuracy and diversity of samples, with 95% intervals.

  Args:
    images: Samples, `[N, H, W, C]` in [-1, 1]; one for each (caption, seed).
    labels: Digit in each caption, int `[N]`.
    predict: f(images) -> int `[N]`, the digit in each (`classifier.fit(...).predict`).
    baseline: Samples of the reference for the same captions and seeds in the same order, of the
      shape of `images`; None for the reference itself.
    resamples: Number of resamples of each bootstrap, at least 2000.
    seed: Seed of each bootstrap.

  Returns:
    A dict with the Intervals `ink` and `digit_accuracy`, `diversity` {"pairwise": Interval,
    "vendi": float}, `ink_values` (list of N floats), and the paired comparisons with the baseline
    (None without one): `ink_gain`, `win_rate`, `accuracy_change`, all Intervals.

  Raises:
    InputError: Shapes do not fit, a pixel is not finite, or a label has fewer than two images.
  """
  if np.shape(labels) != np.shape(images)[:1]:
    raise InputError(f"labels {np.shape(labels)} must be one per image of {np.shape(images)}")
  if baseline is not None and np.shape(baseline) != np.shape(images):
    raise InputError(f"baseline {np.shape(baseline)} must have the shape {np.shape(images)}")
  settings = {"resamples": resamples, "seed": seed}
  ink = digits.ink(images)
  correct = predict(images) == labels
  scores = {
    "ink": statistics.bootstrap(ink, **settings),
    "ink_values": ink.tolist(),
    "ink_gain": None,
    "win_rate": None,
    "digit_accuracy": statistics.bootstrap(correct, **settings),
    "accuracy_change": None,
    "diversity": {
      "pairwise": statistics.pairwise_distance(images, labels, **settings),
      "vendi": statistics.vendi(images, labels),
    },
  }
  if baseline is not None:
    baseline_ink = digits.ink(baseline)
    baseline_correct = predict(baseline) == labels
    scores["ink_gain"] = statistics.paired_difference(ink, baseline_ink, **settings)
    scores["win_rate"] = statistics.win_rate(ink, baseline_ink, **settings)
    scores["accuracy_change"] = statistics.paired_difference(correct, baseline_correct, **settings)
  return scores
