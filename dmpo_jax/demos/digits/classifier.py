"""A judge of which digit an image shows, fitted on real digits."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.optional import import_optional
from dmpo_jax.data.toy.digits import Digits
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.statistics import Interval, bootstrap


class Classifier(NamedTuple):
  """A fitted classifier and how far it can be trusted.

  Attributes:
    predict: f(images `[N, 8, 8, 1]` in [-1, 1]) -> int32 `[N]`, the digit in each.
    accuracy: Share of held-out real digits it names right.
    heavier_accuracy: The same with their strokes thickened: it should not fall, or a heavy hand
      would be counted as a wrong digit.
    test_images: How many real digits were held out.
  """

  predict: Callable[[np.ndarray], np.ndarray]
  accuracy: Interval
  heavier_accuracy: Interval
  test_images: int


def thicken(images: np.ndarray, *, spread: float = 0.6) -> np.ndarray:
  """Images with heavier strokes: each pixel at least `spread` times its darkest neighbour's ink.

  Args:
    images: `[N, H, W, C]` in [-1, 1].
    spread: Share of the ink that reaches the four neighbours, in [0, 1].

  Returns:
    float32 `[N, H, W, C]` in [-1, 1].
  """
  grey = np.pad((images + 1) / 2, ((0, 0), (1, 1), (1, 1), (0, 0)))  # [N, H + 2, W + 2, C]
  middle = slice(1, -1)
  neighbours = [
    grey[:, :-2, middle], grey[:, 2:, middle], grey[:, middle, :-2], grey[:, middle, 2:]
  ]  # fmt: skip
  heavy = np.maximum(grey[:, middle, middle], spread * np.maximum.reduce(neighbours))
  return (2 * heavy - 1).astype(np.float32)


def fit(train: Digits, test: Digits, *, seed: int = 0) -> Classifier:
  """Fits a support vector machine on real digits and measures it on real digits it has not seen.

  It is fitted on each training image as drawn, with fainter strokes and with thicker ones, so that
  stroke weight, which alignment changes, says nothing about the digit.

  Args:
    train: What it learns from.
    test: What it is measured on.
    seed: Of the intervals; the fit has no randomness.

  Returns:
    `Classifier`.

  Raises:
    InputError: scikit-learn is not installed, or a part is empty.
  """
  svm = import_optional("sklearn.svm")
  if not (len(train.labels) and len(test.labels)):
    raise InputError(
      f"the classifier needs digits to learn from and to be tested on, got {len(train.labels)} "
      f"and {len(test.labels)}"
    )
  fainter = 2 * ((train.images + 1) / 2) ** 1.6 - 1
  seen = np.concatenate([train.images, fainter, thicken(train.images)])  # [3N, H, W, C]
  machine = svm.SVC(C=10, gamma=0.256).fit(_features(seen), np.tile(train.labels, 3))

  def predict(images: np.ndarray) -> np.ndarray:
    return machine.predict(_features(images)).astype(np.int32)

  def accuracy(images: np.ndarray) -> Interval:
    return bootstrap(predict(images) == test.labels, seed=seed)

  return Classifier(
    predict=predict,
    accuracy=accuracy(test.images),
    heavier_accuracy=accuracy(thicken(test.images)),
    test_images=len(test.labels),
  )


def _features(images: np.ndarray) -> np.ndarray:
  """Grey levels in [0, 1], one row per image."""
  return np.clip((np.asarray(images, np.float64) + 1) / 2, 0, 1).reshape(len(images), -1)
