"""The data sets that a config can name.

Every data set has `captions`, from which a new pipeline makes its vocabulary; `fingerprint()`; and
`loader(...)`, whose `[step]` is the batch of a step and whose `iterate(step)` yields the batches
from there on. They are in memory (`Examples`), in converted folders (`FolderPairs`) or cached
latents (`CachedLatents`, whose loader needs no tokenizer).
"""

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.data.folder_pairs import FolderPairs
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.latents.dataset import CachedLatents
from dmpo_jax.data.toy import digit_edits as edits
from dmpo_jax.data.toy import digits
from dmpo_jax.data.toy import image_captions as image_folder
from dmpo_jax.errors import unknown

# Digits that no run trains on: the classifier that scores samples is tested on them.
TEST_FRACTION, SPLIT_SEED = 0.3, 0
SPLITS = ("train", "test")


def digit_images(
  *, split: str = "train", test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED
) -> Examples:
  """Scikit-learn's digits with captions, one image per example.

  Args:
    split: "train" or "test".
    test_fraction: Fraction of the digits in the test split.
    split_seed: Decides which digits are in the test split.

  Returns:
    `Examples` with images `[N, 1, 8, 8, 1]`; an id is the image's number in its split.
  """
  selected = _digits(split, test_fraction, split_seed)
  return Examples(
    images=selected.images[:, None],  # [N, 1, H, W, C]
    captions=digits.captions(selected.labels),
    ids=np.arange(len(selected.labels), dtype=np.uint32),
  )


def digit_pairs(
  *,
  num_pairs: int,
  temperature: float,
  seed: int,
  split: str = "train",
  test_fraction: float = TEST_FRACTION,
  split_seed: int = SPLIT_SEED,
  swap_labels: bool = False,
) -> Examples:
  """Preference pairs of scikit-learn's digits, heavy strokes preferred; see `digits`.

  Args:
    num_pairs: Number of pairs to sample.
    temperature: Temperature of the Bradley-Terry model on ink.
    seed: Seed of pairs and labels.
    split: "train" or "test", the split of the digits.
    test_fraction: Fraction of the digits in the test split.
    split_seed: Decides which digits are in the test split.
    swap_labels: Whether the preferred and the rejected image of each pair change places: for the
      negative LoRA of Diffusion-NPO.

  Returns:
    `Examples` with images `[P, 2, 8, 8, 1]`, (preferred, rejected).
  """
  selected = _digits(split, test_fraction, split_seed)
  pairs = digits.preference_pairs(selected, num_pairs=num_pairs, temperature=temperature, seed=seed)
  return Examples(
    images=np.ascontiguousarray(pairs.images[:, :: -1 if swap_labels else 1]),
    captions=digits.captions(pairs.labels),
    ids=np.arange(num_pairs, dtype=np.uint32),
  )


def digit_edits(
  *,
  num_edits: int,
  seed: int,
  split: str = "train",
  test_fraction: float = TEST_FRACTION,
  split_seed: int = SPLIT_SEED,
) -> Examples:
  """Edits of scikit-learn's digits by instruction, of uneven quality; see `data.toy.digit_edits`.

  Args:
    num_edits: Number of edits to sample.
    seed: Seed of the edits.
    split: "train" or "test", the split of the digits.
    test_fraction: Fraction of the digits in the test split.
    split_seed: Decides which digits are in the test split.

  Returns:
    `Examples` with images `[N, 1, 8, 8, 1]`, instructions as captions, and sources.
  """
  selected = _digits(split, test_fraction, split_seed)
  sampled = edits.candidates(selected, num_edits=num_edits, count=1, seed=seed)
  return Examples(
    images=sampled.images,
    captions=sampled.instructions,
    ids=np.arange(num_edits, dtype=np.uint32),
    sources=sampled.sources,
  )


def digit_edit_pairs(
  *,
  num_pairs: int,
  temperature: float,
  seed: int,
  split: str = "train",
  test_fraction: float = TEST_FRACTION,
  split_seed: int = SPLIT_SEED,
) -> Examples:
  """Pairs of edits of one digit; those that do the edit and keep the rest are preferred.

  Args:
    num_pairs: Number of pairs to sample.
    temperature: Temperature of the Bradley-Terry model on strength + kept.
    seed: Seed of pairs and labels.
    split: "train" or "test", the split of the digits.
    test_fraction: Fraction of the digits in the test split.
    split_seed: Decides which digits are in the test split.

  Returns:
    `Examples` with images `[P, 2, 8, 8, 1]`, (preferred, rejected), and sources.
  """
  selected = _digits(split, test_fraction, split_seed)
  pairs = edits.preference_pairs(selected, num_pairs=num_pairs, temperature=temperature, seed=seed)
  return Examples(
    images=pairs.images,
    captions=pairs.instructions,
    ids=np.arange(num_pairs, dtype=np.uint32),
    sources=pairs.sources,
  )


def image_captions(*, folder: str, size: int, split: str = "train") -> Examples:
  """Images of a folder with captions, such as `dmpo-jax data emoji` writes.

  Args:
    folder: Folder with a table captions.csv beside the images.
    size: Side of the square images; the shorter side is scaled to it.
    split: Name of the split.

  Returns:
    `Examples` with images `[N, 1, size, size, 3]`.
  """
  return image_folder.load(paths.parse(folder), size=size, split=split)


def _digits(split: str, test_fraction: float, seed: int) -> digits.Digits:
  if split not in SPLITS:
    raise unknown("split of the digits", split, SPLITS)
  splits = digits.split(digits.load(), test_fraction=test_fraction, seed=seed)
  return splits[SPLITS.index(split)]


# A mixture is the data set of several folders: the names with "mixture" say so in a config.
DATASETS = {
  "cached_latents": CachedLatents,
  "cached_latents_mixture": CachedLatents,
  "digit_edit_pairs": digit_edit_pairs,
  "digit_edits": digit_edits,
  "digit_pairs": digit_pairs,
  "digits": digit_images,
  "image_captions": image_captions,
  "mixture": FolderPairs,
  "pairs": FolderPairs,
}
# Former names of data sets and of their options.
RENAMED = {
  "captioned": "image_captions",
  "encoded": "cached_latents",
  "encoded_mixture": "cached_latents_mixture",
  "time_ids": "micro_conditioning",
}
