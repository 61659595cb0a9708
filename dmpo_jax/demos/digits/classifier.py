"""Classifier of digits, fitted on real ones."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.optional import import_optional
from dmpo_jax.data.toy.digit_edits import thicken
from dmpo_jax.data.toy.digits import Digits
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.statistics import Interval, bootstrap

# Fraction of the ink that neighbours receive in thicker digits.
HEAVIER = 0.6


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
  augmented = np.concatenate(
    [train.images, fainter, thicken(train.images, HEAVIER)]
  )  # [3N, H, W, C]
  machine = svm.SVC(C=10, gamma=0.256).fit(_features(augmented), np.tile(train.labels, 3))

  def predict(images: np.ndarray) -> np.ndarray:
    return machine.predict(_features(images)).astype(np.int32)

  def accuracy(images: np.ndarray) -> Interval:
    return bootstrap(predict(images) == test.labels, seed=seed)

  return Classifier(
    predict=predict,
    accuracy=accuracy(test.images),
    heavier_accuracy=accuracy(thicken(test.images, HEAVIER)),
    test_images=len(test.labels),
  )


def _features(images: np.ndarray) -> np.ndarray:
  """Grey levels in [0, 1], `[N, H*W*C]`."""
  return np.clip((np.asarray(images, np.float64) + 1) / 2, 0, 1).reshape(len(images), -1)
