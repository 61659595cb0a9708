"""Options of caching latents."""

from typing import NamedTuple

from dmpo_jax.data import crops
from dmpo_jax.errors import InputError, short, unknown

DTYPES = ("float16", "bfloat16", "float32")
# Largest values of numbers, the smallest being 1.
MOST = {"augmentations": 10_000, "batch_size": 65_536, "pairs_per_shard": 1_000_000}


class Options(NamedTuple):
  """How pairs are encoded and stored.

  Attributes:
    split: Name of the split.
    size: Side of the square images in pixels.
    crop: "center" or "random", see `crops.sample`.
    flip: Whether half of the views are flipped.
    augmentations: Views stored of each pair. View v has the crop of training on images with the
      seed `seed` in epoch v.
    seed: Seed of the crops.
    dtype: Stored dtype of latents and embeddings: "float16", "bfloat16" or "float32".
    embeddings: Whether text embeddings are stored beside the token ids.
    batch_size: Pairs that a device encodes at a time. The last bits depend on it.
    pairs_per_shard: Pairs of a file.
  """

  split: str = "train"
  size: int = 512
  crop: str = "center"
  flip: bool = False
  augmentations: int = 1
  seed: int = 0
  dtype: str = "float16"
  embeddings: bool = True
  batch_size: int = 1
  pairs_per_shard: int = 1000


def check(options: Options, *, channels: int = 3) -> None:
  """Raises InputError if an option is invalid, or the encoders take images of other channels."""
  crops.check(size=options.size, crop=options.crop, channels=channels)
  if options.dtype not in DTYPES:
    raise unknown("dtype to store", options.dtype, DTYPES)
  for name, most in MOST.items():
    if not 1 <= getattr(options, name) <= most:
      raise InputError(f"{name} must be from 1 to {most:,}, got {short(getattr(options, name))}")
  if not 0 <= options.seed < 2**32:
    raise InputError(f"seed must be in [0, 2**32), got {options.seed}")
  if options.augmentations > 1 and options.crop == "center" and not options.flip:
    raise InputError(
      f"{options.augmentations} augmentations of a center crop without flips are all the same; "
      "choose random crops, flips, or one augmentation"
    )
