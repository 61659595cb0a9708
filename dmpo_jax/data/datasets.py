"""The data sets that a config can name.

All have the same face, whether they lie in memory (`Examples`), on disk (`FolderPairs`) or are
encoded (`CachedLatents`, which needs no tokenizer): `captions`, of which a new pipeline makes its
vocabulary; `fingerprint()`, which tells other data apart; `loader(tokenize, ...)`, whose `[step]`
is the batch of a step and whose `iterate(step)` gives the batches from there on.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from dmpo_jax.data.folder_pairs import FolderPairs
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.latents.dataset import CachedLatents
from dmpo_jax.data.toy import digits
from dmpo_jax.data.toy import image_captions as image_folder
from dmpo_jax.errors import unknown

# So many digits are kept from every training run: the classifier that judges samples is tested on
# them.
TEST_FRACTION, SPLIT_SEED = 0.3, 0
SPLITS = ("train", "test")


def digit_images(
  *, split: str = "train", test_fraction: float = TEST_FRACTION, split_seed: int = SPLIT_SEED
) -> Examples:
  """Scikit-learn's digits, captioned, one image an example.

  Args:
    split: "train", or "test" for those that are kept out.
    test_fraction: Share that is kept out.
    split_seed: Decides which ones.

  Returns:
    `Examples` with images `[N, 1, 8, 8, 1]`; an id is the image's place in its part.
  """
  part = _digits(split, test_fraction, split_seed)
  return Examples(
    images=part.images[:, None],  # [N, 1, H, W, C]
    captions=digits.captions(part.labels),
    ids=np.arange(len(part.labels), dtype=np.uint32),
  )


def digit_pairs(
  *,
  num_pairs: int,
  temperature: float,
  seed: int,
  split: str = "train",
  test_fraction: float = TEST_FRACTION,
  split_seed: int = SPLIT_SEED,
) -> Examples:
  """Preference pairs among the same digits, heavier strokes preferred; see `preference_pairs`.

  Args:
    num_pairs: How many pairs are drawn.
    temperature: Of the Bradley-Terry rule on ink.
    seed: Decides pairs and labels.
    split: "train", or "test" for pairs of digits that are kept out.
    test_fraction: Share of the digits that is kept out.
    split_seed: Decides which ones.

  Returns:
    `Examples` with images `[P, 2, 8, 8, 1]`, (preferred, rejected).
  """
  part = _digits(split, test_fraction, split_seed)
  pairs = digits.preference_pairs(part, num_pairs=num_pairs, temperature=temperature, seed=seed)
  return Examples(
    images=pairs.images,
    captions=digits.captions(pairs.labels),
    ids=np.arange(num_pairs, dtype=np.uint32),
  )


def image_captions(*, folder: str, size: int, split: str = "train") -> Examples:
  """Captioned images of a folder, such as `dmpo-jax data emoji` writes; see `image_captions.load`.

  Args:
    folder: With a table captions.csv beside the images.
    size: Side of the square images that training sees; the shorter side is scaled to it.
    split: Name of the split.

  Returns:
    `Examples` with images `[N, 1, size, size, 3]`.
  """
  return image_folder.load(pathlib.Path(folder), size=size, split=split)


def _digits(split: str, test_fraction: float, seed: int) -> digits.Digits:
  parts = digits.split(digits.load(), test_fraction=test_fraction, seed=seed)
  if split not in SPLITS:
    raise unknown("split of the digits", split, SPLITS)
  return parts[SPLITS.index(split)]


def pairs(
  *,
  folder: str,
  size: int,
  split: str = "train",
  crop: str = "center",
  flip: bool = False,
  views: str = "joint",
  decoding: str = "exact",
  ties: str = "soft",
  micro_conditioning: bool = False,
) -> FolderPairs:
  """Preference pairs that `dmpo-jax data convert` wrote, read from disk as they are needed.

  Args:
    folder: What was written.
    size: Side of the square images that training sees; the shorter side is scaled to it.
    split: Name of the split.
    crop: Which square of the scaled image: "center", or "random", drawn anew in each epoch.
    flip: Whether half of the pairs are flipped, drawn anew in each epoch.
    views: "joint": crop and flip are the same for both images of a pair; "separate": each image has
      its own.
    decoding: "exact"; "draft" decodes JPEGs at 1/2, 1/4 or 1/8 of their size where that is still at
      least `size`, which takes a fraction of the time and changes pixels by a level or two.
    ties: "soft" keeps pairs without a preferred image with the label 1/2, "drop" leaves them out.
    micro_conditioning: Whether batches hold SDXL's sizes and crops.

  Returns:
    `FolderPairs`.
  """
  return mixture(
    folders=(folder,),
    weights=(1.0,),
    size=size,
    split=split,
    crop=crop,
    flip=flip,
    views=views,
    decoding=decoding,
    ties=ties,
    micro_conditioning=micro_conditioning,
  )


def mixture(
  *,
  folders: Sequence[str],
  weights: Sequence[float],
  size: int,
  split: str = "train",
  crop: str = "center",
  flip: bool = False,
  views: str = "joint",
  decoding: str = "exact",
  ties: str = "soft",
  micro_conditioning: bool = False,
) -> FolderPairs:
  """Pairs of several converted folders, each in its share; otherwise as `pairs`.

  Args:
    folders: What was written, one folder each.
    weights: Shares of the examples by folder, > 0; 3 to 1 is the same as 0.75 to 0.25. A folder
      whose share is larger than its part of the pairs is gone through more often.
    size: See `pairs`, as all that follows.
    split: The same split of each folder.
    crop: "center" or "random".
    flip: Whether half of the pairs are flipped.
    views: "joint" or "separate".
    decoding: "exact" or "draft".
    ties: "soft" or "drop".
    micro_conditioning: Whether batches hold SDXL's sizes and crops.

  Returns:
    `FolderPairs`.
  """
  return FolderPairs(
    folders,
    weights,
    split=split,
    size=size,
    crop=crop,
    flip=flip,
    views=views,
    decoding=decoding,
    ties=ties,
    micro_conditioning=micro_conditioning,
  )


def cached_latents(
  *, folder: str, ties: str = "soft", embeddings: bool = True, micro_conditioning: bool = False
) -> CachedLatents:
  """Pairs that `dmpo-jax data cache-latents` wrote: no step runs the VAE or the text encoders.

  Args:
    folder: What was written, by the pipeline that the run starts from.
    ties: "soft" keeps pairs without a preferred image with the label 1/2, "drop" leaves them out.
    embeddings: Whether stored text embeddings are used; False where a text encoder is trained.
    micro_conditioning: Whether SDXL is told the sizes and crops, or that nothing was scaled or cut.

  Returns:
    `CachedLatents`.
  """
  return CachedLatents(
    [folder], [1.0], ties=ties, embeddings=embeddings, micro_conditioning=micro_conditioning
  )


def cached_latents_mixture(
  *,
  folders: Sequence[str],
  weights: Sequence[float],
  ties: str = "soft",
  embeddings: bool = True,
  micro_conditioning: bool = False,
) -> CachedLatents:
  """Several encoded folders, each in its share as in `mixture`; otherwise as `cached_latents`.

  Args:
    folders: What was written, one folder each, all by the same pipeline and for the same size.
    weights: Shares of the examples by folder, > 0.
    ties: See `cached_latents`, as all that follows.
    embeddings: Whether stored text embeddings are used.
    micro_conditioning: Whether SDXL is told sizes and crops.

  Returns:
    `CachedLatents`.
  """
  return CachedLatents(
    folders, weights, ties=ties, embeddings=embeddings, micro_conditioning=micro_conditioning
  )


DATASETS = {
  "image_captions": image_captions,
  "digit_pairs": digit_pairs,
  "digits": digit_images,
  "cached_latents": cached_latents,
  "cached_latents_mixture": cached_latents_mixture,
  "mixture": mixture,
  "pairs": pairs,
}
# Former names of data sets and of their options.
RENAMED = {
  "captioned": "image_captions",
  "encoded": "cached_latents",
  "encoded_mixture": "cached_latents_mixture",
  "time_ids": "micro_conditioning",
}
