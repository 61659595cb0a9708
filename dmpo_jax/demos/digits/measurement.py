"""All scores of one model's samples, as the report takes them."""

from collections.abc import Callable

import numpy as np

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
  """Ink, wins, digit accuracy and diversity of samples, with 95% intervals.

  Args:
    images: Samples, `[N, H, W, C]` in [-1, 1]; one for each (caption, seed).
    labels: The digit each caption asks for, int `[N]`.
    predict: Which digit an image shows (`digit_classifier.fit(...).predict`).
    baseline: The reference model's samples of the same captions and seeds in the same order, the
      shape of `images`; None for the reference itself.
    resamples: Of each bootstrap, at least 2000.
    seed: Of each bootstrap.

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
  level = statistics.ink(images)
  right = predict(images) == labels
  found = {
    "ink": statistics.bootstrap(level, **settings),
    "ink_values": level.tolist(),
    "ink_gain": None,
    "win_rate": None,
    "digit_accuracy": statistics.bootstrap(right, **settings),
    "accuracy_change": None,
    "diversity": {
      "pairwise": statistics.pairwise_distance(images, labels, **settings),
      "vendi": statistics.vendi(images, labels),
    },
  }
  if baseline is not None:
    before = statistics.ink(baseline)
    was_right = predict(baseline) == labels
    found["ink_gain"] = statistics.paired_difference(level, before, **settings)
    found["win_rate"] = statistics.win_rate(level, before, **settings)
    found["accuracy_change"] = statistics.paired_difference(right, was_right, **settings)
  return found
