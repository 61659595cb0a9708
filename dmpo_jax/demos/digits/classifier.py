"""Classifier of digits, fitted on real ones."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.optional import import_optional
from dmpo_jax.data.toy.digits import Digits
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.statistics import Interval, bootstrap


class Classifier(NamedTuple):
  """A fitted classifier and its accuracy.

  Attributes:
    predict: f(images `[N, 8, 8, 1]` in [-1, 1]) -> int32 `[N]`, the digit in each.
    accuracy: Fraction of held-out real digits that it classifies correctly.
    heavier_accuracy: The same with thickened strokes. It should not be lower, since otherwise
      heavy strokes would count as wrong digits.
    test_images: Number of held-out real digits.
  """

  predict: Callable[[np.ndarray], np.ndarray]
  accuracy: Interval
  heavier_accuracy: Interval
  test_images: int


def thicken(images: np.ndarray, *, spread: float = 0.6) -> np.ndarray:
  """Images with thicker strokes: each pixel has at least `spread` times its neighbours' ink.

  Args:
    images: `[N, H, W, C]` in [-1, 1].
    spread: Fraction of the ink that the four neighbours receive, in [0, 1].

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
  """Support vector machine, fitted on real digits and measured on held-out ones.

  The training set has each image unchanged, with fainter and with thicker strokes, so that stroke
  weight, which alignment changes, does not affect the class.

  Args:
    train: Training set.
    test: Test set.
    seed: Seed of the intervals; the fit has no randomness.

  Returns:
    `Classifier`.

  Raises:
    InputError: scikit-learn is not installed, or a set is empty.
  """
  svm = import_optional("sklearn.svm")
  if not (len(train.labels) and len(test.labels)):
    raise InputError(
      f"the classifier needs digits for training and for the test, got {len(train.labels)} and "
      f"{len(test.labels)}"
    )
  fainter = 2 * ((train.images + 1) / 2) ** 1.6 - 1
  augmented = np.concatenate([train.images, fainter, thicken(train.images)])  # [3N, H, W, C]
  machine = svm.SVC(C=10, gamma=0.256).fit(_features(augmented), np.tile(train.labels, 3))

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
  """Grey levels in [0, 1], `[N, H*W*C]`."""
  return np.clip((np.asarray(images, np.float64) + 1) / 2, 0, 1).reshape(len(images), -1)
