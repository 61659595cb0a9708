"""The data sets that a config can name."""

import numpy as np

from dmpo_jax.data import digits
from dmpo_jax.data.records import Examples

# So many digits are kept from every training run: the classifier that judges samples is tested on
# them.
TEST_FRACTION, SPLIT_SEED = 0.3, 0


def digit_images(*, test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED) -> Examples:
  """The training part of scikit-learn's digits, captioned, one image an example.

  Args:
    test_fraction: Share that is kept out.
    split_seed: Decides which ones.

  Returns:
    `Examples` with images `[N, 1, 8, 8, 1]`; an id is the image's place in the training part.
  """
  train, _ = digits.split(digits.load(), test_fraction=test_fraction, seed=split_seed)
  return Examples(
    images=train.images[:, None],  # [N, 1, H, W, C]
    captions=digits.captions(train.labels),
    ids=np.arange(len(train.labels), dtype=np.uint32),
  )


def digit_pairs(
  *,
  num_pairs: int,
  temperature: float,
  seed: int,
  test_fraction: float = TEST_FRACTION,
  split_seed: int = SPLIT_SEED,
) -> Examples:
  """Preference pairs among the same digits, heavier strokes preferred; see `preference_pairs`.

  Args:
    num_pairs: How many pairs are drawn.
    temperature: Of the Bradley-Terry rule on ink.
    seed: Decides pairs and labels.
    test_fraction: Share of the digits that is kept out.
    split_seed: Decides which ones.

  Returns:
    `Examples` with images `[P, 2, 8, 8, 1]`, (preferred, rejected).
  """
  train, _ = digits.split(digits.load(), test_fraction=test_fraction, seed=split_seed)
  pairs = digits.preference_pairs(train, num_pairs=num_pairs, temperature=temperature, seed=seed)
  return Examples(
    images=pairs.images,
    captions=digits.captions(pairs.labels),
    ids=np.arange(num_pairs, dtype=np.uint32),
  )


DATASETS = {"digit_pairs": digit_pairs, "digits": digit_images}
