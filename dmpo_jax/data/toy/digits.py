"""Scikit-learn's handwritten digits, and preferences between them under a declared rule."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.optional import import_optional
from dmpo_jax.errors import InputError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(NamedTuple):
  """Images of digits and what they show.

  Attributes:
    images: float32 `[N, 8, 8, 1]` in [-1, 1]; -1 is blank paper, 1 is full ink.
    labels: int32 `[N]`, 0 to 9.
  """

  images: np.ndarray
  labels: np.ndarray


class Pairs(NamedTuple):
  """Preference pairs of digits; the two of a pair show the same digit and are different images.

  Attributes:
    images: float32 `[P, 2, 8, 8, 1]` in [-1, 1]; axis 1 is (preferred, rejected).
    labels: int32 `[P]`, the digit that both show.
    indices: int32 `[P, 2]`, where the two lie among the digits they were drawn from.
    ink: float32 `[P, 2]` in [0, 1], mean grey level of (preferred, rejected).
    p_preferred: float32 `[P]`, probability that the rule prefers the one it did prefer.
    flipped: bool `[P]`, whether the lighter of the two was preferred; its mean is the label noise.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  ink: np.ndarray
  p_preferred: np.ndarray
  flipped: np.ndarray


def load() -> Digits:
  """The 1,797 handwritten digits that scikit-learn carries, 8x8 pixels of 17 grey levels.

  Returns:
    `Digits` in scikit-learn's order.

  Raises:
    InputError: scikit-learn is not installed.

  Source: sklearn.datasets.load_digits, the test part of the UCI set "Optical Recognition of
    Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).
  """
  found = import_optional("sklearn.datasets").load_digits()
  images = (found.images / 8 - 1).astype(np.float32)[..., None]  # [N, H, W, C]
  return Digits(images=images, labels=found.target.astype(np.int32))


def captions(labels: Sequence[int] | np.ndarray) -> list[str]:
  """A caption for each label: 7 becomes "the digit seven".

  Args:
    labels: Integers 0 to 9, `[N]`.

  Returns:
    N captions.

  Raises:
    InputError: A label is not one of the ten digits.
  """
  values = np.asarray(labels).reshape(-1)
  wrong = [x for x in values.tolist() if x not in range(10)]
  if wrong:
    raise InputError(f"label {wrong[0]!r} is no digit; labels are integers from 0 to 9")
  return [f"the digit {WORDS[int(x)]}" for x in values]


def split(digits: Digits, *, test_fraction: float, seed: int) -> tuple[Digits, Digits]:
  """Divides digits at random into a train and a test part, each digit in the same proportion.

  Args:
    digits: What to divide.
    test_fraction: Share of each digit's images that goes to the test part, in (0, 1).
    seed: Decides which ones.

  Returns:
    (train, test), each in the order of `digits`.

  Raises:
    InputError: The fraction is out of range, or so small or large for some digit that a part would
      hold none of it.
  """
  if not 0 < test_fraction < 1:
    raise InputError(f"test_fraction must lie between 0 and 1, got {test_fraction!r}")
  rng = np.random.default_rng(seed)
  is_test = np.zeros(len(digits.labels), bool)
  for label in np.unique(digits.labels):
    members = np.flatnonzero(digits.labels == label)
    count = round(test_fraction * len(members))
    if count in (0, len(members)):
      raise InputError(
        f"test_fraction {test_fraction} of {len(members)} images of digit {label} leaves "
        f"{count} for the test and {len(members) - count} for training; both need at least one"
      )
    is_test[rng.permutation(members)[:count]] = True
  train, test = (Digits(digits.images[m], digits.labels[m]) for m in (~is_test, is_test))
  return train, test


def ink(images: np.ndarray) -> np.ndarray:
  """Mean grey level of each image as it is shown: 0 is blank paper, 1 is ink all over.

      ink = mean over H, W, C of clip((x + 1)/2, 0, 1)

  Args:
    images: `[..., H, W, C]` in [-1, 1]; values outside are clipped, as a picture file clips them.

  Returns:
    float64 `[...]` in [0, 1].

  Raises:
    InputError: Fewer than three axes, or a value that is NaN or infinite.
  """
  x = np.asarray(images, np.float64)
  if x.ndim < 3:
    raise InputError(f"images must be [..., H, W, C], got shape {x.shape}")
  if not np.isfinite(x).all():
    raise InputError(f"{np.count_nonzero(~np.isfinite(x))} of {x.size} pixels are NaN or infinite")
  return np.clip((x + 1) / 2, 0, 1).mean(axis=(-3, -2, -1))


def preference_pairs(digits: Digits, *, num_pairs: int, temperature: float, seed: int) -> Pairs:
  """Pairs of different images of one digit, labelled by a rule that likes heavy strokes.

      P(a preferred over b) = σ((ink(a) - ink(b)) / temperature)

  The first of a pair is drawn uniformly from all images, the second from the others of its digit;
  a label is one draw from the probability above (Bradley-Terry with ink as the score), so that
  pairs of nearly equal ink are labelled nearly at random. A pair can occur more than once.

  Args:
    digits: Where the images come from.
    num_pairs: P, how many pairs to draw.
    temperature: Difference of ink, in grey levels of [0, 1], at which the odds are e : 1; > 0.
    seed: Decides the pairs and the labels.

  Returns:
    `Pairs`.

  Raises:
    InputError: A number is out of range, or a digit has only one image.
  """
  if num_pairs < 1:
    raise InputError(f"num_pairs must be at least 1, got {num_pairs!r}")
  if not (temperature > 0 and math.isfinite(temperature)):
    raise InputError(f"temperature must be a positive number, got {temperature!r}")
  count = np.bincount(digits.labels, minlength=10)
  if not len(digits.labels) or (count == 1).any():
    raise InputError(f"each digit needs two images to make a pair; images per digit: {count}")
  rng = np.random.default_rng(seed)

  # Sorted by digit, the others of an image's digit are the next count - 1, round the circle.
  order = np.argsort(digits.labels, kind="stable")
  start = np.cumsum(count) - count
  first = rng.integers(len(order), size=num_pairs)
  label = digits.labels[order[first]]
  offset = rng.integers(1, count[label])
  second = start[label] + (first - start[label] + offset) % count[label]
  candidates = order[np.stack([first, second], axis=1)]

  level = ink(digits.images)[candidates]
  p_first = np.exp(-np.logaddexp(0, (level[:, 1] - level[:, 0]) / temperature))
  prefers_first = rng.random(num_pairs) < p_first
  sides = np.where(prefers_first[:, None], [[0, 1]], [[1, 0]])
  indices = np.take_along_axis(candidates, sides, axis=1)
  level = np.take_along_axis(level, sides, axis=1)
  return Pairs(
    images=digits.images[indices],  # [P, 2, H, W, C]
    labels=label.astype(np.int32),
    indices=indices.astype(np.int32),
    ink=level.astype(np.float32),
    p_preferred=np.where(prefers_first, p_first, 1 - p_first).astype(np.float32),
    flipped=level[:, 0] < level[:, 1],
  )
