"""Scikit-learn's handwritten digits, and synthetic preferences between them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.optional import import_optional
from dmpo_jax.common.ranges import Integers, Interval, check_integer, check_number
from dmpo_jax.errors import InputError

# All pairs are in memory, half a kilobyte each.
MAX_PAIRS = 10**6
SEEDS = Integers(0, 2**64 - 1)
TEMPERATURES = Interval(1e-12, 1e12, closed_low=True, closed_high=True)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(NamedTuple):
  """Images of digits and their labels.

  Attributes:
    images: float32 `[N, 8, 8, 1]` in [-1, 1]; -1 is blank paper, 1 is ink.
    labels: int32 `[N]`, 0 to 9.
  """

  images: np.ndarray
  labels: np.ndarray


class Pairs(NamedTuple):
  """Preference pairs of digits. A pair holds two different images of one digit.

  Attributes:
    images: float32 `[P, 2, 8, 8, 1]` in [-1, 1]; axis 1 is (preferred, rejected).
    labels: int32 `[P]`, the digit of both images.
    indices: int32 `[P, 2]`, indices of the two images in the digits they were sampled from.
    ink: float32 `[P, 2]` in [0, 1], mean grey level of (preferred, rejected).
    p_preferred: float32 `[P]`, probability of the sampled label.
    flipped: bool `[P]`, whether the image with less ink is preferred; its mean is the flip rate.
  """

  images: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  ink: np.ndarray
  p_preferred: np.ndarray
  flipped: np.ndarray


def load() -> Digits:
  """The 1,797 handwritten digits of scikit-learn, 8x8 pixels of 17 grey levels.

  Returns:
    `Digits` in scikit-learn's order.

  Raises:
    InputError: scikit-learn is not installed.

  Source: sklearn.datasets.load_digits, the test part of the UCI set "Optical Recognition of
    Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).
  """
  dataset = import_optional("sklearn.datasets").load_digits()
  images = (dataset.images / 8 - 1).astype(np.float32)[..., None]  # [N, H, W, C]
  return Digits(images=images, labels=dataset.target.astype(np.int32))


def captions(labels: Sequence[int] | np.ndarray) -> list[str]:
  """The caption of each label: "the digit seven" for 7.

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
  """Splits digits at random into train and test, stratified by digit.

  Args:
    digits: The digits.
    test_fraction: Fraction of each digit's images in the test split, in (0, 1).
    seed: Seed of the split, below 2**64.

  Returns:
    (train, test), each in the order of `digits`.

  Raises:
    InputError: The fraction is out of range, or a split would hold no image of some digit.
  """
  check_number("test_fraction", test_fraction, Interval(0, 1))
  check_integer("split_seed", seed, SEEDS)
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
  """Mean grey level of each image: 0 is blank paper, 1 is ink everywhere.

      ink = mean over H, W, C of clip((x + 1)/2, 0, 1)

  Args:
    images: `[..., H, W, C]` in [-1, 1]; values outside are clipped, as in an image file.

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
  """Pairs of different images of one digit, with heavy strokes preferred more often.

      P(a preferred over b) = σ((ink(a) - ink(b)) / temperature)

  The first image of a pair is sampled uniformly from all images, the second one from the others of
  its digit. A label is sampled with the probability above (Bradley-Terry with ink as the score). A
  pair can occur more than once.

  Args:
    digits: The digits.
    num_pairs: P, number of pairs to sample.
    temperature: Difference of ink, in grey levels of [0, 1], at which the odds are e : 1; > 0.
    seed: Seed of the pairs and the labels.

  Returns:
    `Pairs`.

  Raises:
    InputError: A number is out of range, or a digit has only one image.
  """
  check_integer("num_pairs", num_pairs, Integers(1, MAX_PAIRS))
  check_number("temperature", temperature, TEMPERATURES)
  check_integer("seed", seed, SEEDS)
  count = np.bincount(digits.labels, minlength=10)
  if not len(digits.labels) or (count == 1).any():
    raise InputError(f"each digit needs two images to make a pair; images per digit: {count}")
  rng = np.random.default_rng(seed)

  # Sorted by digit, the others of an image's digit are the next count - 1, cyclically.
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
