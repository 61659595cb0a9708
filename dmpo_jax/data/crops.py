"""Encoded images to arrays of one size, through center or random crops and flips.

Images are scaled with Pillow's LANCZOS filter, which averages where it shrinks (antialiasing).
Unless configured otherwise both images of a pair have the same crop: a difference between them that
the annotator did not see must not carry the label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dmpo_jax.data import images
from dmpo_jax.errors import InputError, unknown

CROPS = ("center", "random")
DECODING = ("exact", "draft")  # draft: JPEGs at 1/2, 1/4 or 1/8 where that is large enough
VIEWS = ("joint", "separate")  # crops of the two images of a pair
CHANNELS = (1, 3)  # 1: ITU-R 601-2 luma, (299 R + 587 G + 114 B)/1000, Pillow's "L"


class Crop(NamedTuple):
  """A square of a scaled image.

  Attributes:
    top: Position in [0, 1) among the possible first rows; None: the middle.
    left: Position among the possible first columns, counted after the flip; None: the middle.
    flip: Whether the image is flipped horizontally.
  """

  top: float | None
  left: float | None
  flip: bool


CENTER = Crop(None, None, False)


def sample(
  seed: int, epoch: int, example_id: int, *, crop: str, flip: bool, image: int = 0
) -> Crop:
  """The crop of an example in an epoch, a function of (seed, epoch, example id).

  Args:
    seed: Seed of the run.
    epoch: Number of the epoch.
    example_id: Id of the example.
    crop: "center", or "random": uniform over all positions.
    flip: Whether half of the crops are flipped.
    image: Images of different numbers have independent crops.

  Returns:
    `Crop`.
  """
  # The shuffle of the epoch has the same key; its counter leaves the last three words at 0.
  key, counter = np.array([seed, epoch], np.uint64), np.array([0, 1, example_id, image], np.uint64)
  bits = np.random.Philox(key=key, counter=counter).random_raw(3)
  top, left, side = ((bits >> np.uint64(11)) * 2.0**-53).tolist()
  random = crop == "random"
  return Crop(top if random else None, left if random else None, flip and side < 0.5)


def check(*, size: int, crop: str, channels: int) -> None:
  """Raises InputError if a size, crop or number of channels is invalid."""
  if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 8192:
    raise InputError(f"size must be a whole number of pixels from 1 to 8192, got {size!r}")
  if crop not in CROPS:
    raise unknown("crop", crop, CROPS)
  if channels not in CHANNELS:
    raise InputError(
      f"the pipeline takes images of {channels} channels; pairs can be read as 3 (RGB) or 1 (grey)"
    )


def load(
  encoded: bytes,
  crop: Crop,
  *,
  size: int,
  channels: int,
  decoding: str = "exact",
  like: tuple[int, int] | None = None,
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
  """Decodes an image, scales its shorter side to `size`, and crops a square.

  Args:
    encoded: JPEG, PNG or WebP, 8-bit RGB.
    crop: Position of the square.
    size: Side of the square in pixels.
    channels: 3, or 1: luma.
    decoding: "draft" decodes large JPEGs at a fraction of their size, see `images.decode_scaled`.
    like: (height, width) of the image whose crop this one's must cover: it is scaled to what that
      image is scaled to, and so stretched where its aspect ratio is another. None: itself.

  Returns:
    pixels: uint8 `[size, size, channels]`.
    position: (original height, original width, crop top, crop left); the crop is in pixels of the
      scaled and flipped image.

  Raises:
    UndecodableError: The bytes are no complete image of that kind.
  """
  least = size if decoding == "draft" else None
  image, (height, width), factor = images.decode_scaled(encoded, least)
  like_height, like_width = like or (height, width)
  scale = size / min(like_width, like_height)
  wide, high = (max(size, round(side * scale)) for side in (like_width, like_height))
  top, left = _first(crop.top, high - size), _first(crop.left, wide - size)
  start = wide - size - left if crop.flip else left  # in the image before the flip
  if channels == 1:
    image = image.convert("L")
  if (wide * factor, high * factor) == (width, height):
    if (wide, high) != (size, size):
      image = image.crop((start, top, start + size, top + size))
  else:
    # Only the square is computed, so that extreme aspect ratios take no more memory. The filter
    # ends at the square's border as it does at the image's.
    decoded_width, decoded_height = width / factor, height / factor
    x, y = decoded_width / wide, decoded_height / high
    right, bottom = min((start + size) * x, decoded_width), min((top + size) * y, decoded_height)
    image = image.resize(
      (size, size), Image.Resampling.LANCZOS, box=(start * x, top * y, right, bottom)
    )
  if crop.flip:  # by Pillow: copying an array backwards takes as long as decoding a JPEG
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image).reshape(size, size, channels), (height, width, top, left)


def stack(pairs: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """A batch of pairs of images.

  Args:
    pairs: P times two images, uint8 `[H, W, C]`.

  Returns:
    uint8 `[P, 2, H, W, C]`. The device converts them to floats: to do that here and to transfer
    floats takes as long as decoding the JPEGs.
  """
  flat = np.stack([pixels for pair in pairs for pixels in pair])
  return flat.reshape(len(pairs), -1, *flat.shape[1:])


def _first(position: float | None, room: int) -> int:
  """First row or column, 0 to `room`, of a crop."""
  return room // 2 if position is None else int(position * (room + 1))
