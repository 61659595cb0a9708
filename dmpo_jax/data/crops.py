"""Encoded pairs of images to arrays of one size, seen through views that are drawn.

Scaled with Pillow's LANCZOS filter, which averages over what it shrinks (antialiasing). Unless
something else is asked for, a view is drawn once for a pair: flips and crops that differ between
its images are a difference that nobody judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dmpo_jax.data import images
from dmpo_jax.errors import InputError, unknown

CROPS = ("center", "random")
DECODING = ("exact", "draft")  # draft: JPEGs at 1/2, 1/4 or 1/8 where that is still large enough
VIEWS = ("joint", "separate")  # of the two images of a pair
CHANNELS = (1, 3)  # 1: ITU-R 601-2 luma, (299 R + 587 G + 114 B)/1000, Pillow's "L"


class View(NamedTuple):
  """What of a scaled image is seen.

  Attributes:
    top: Place of the crop in [0, 1): of the rows that a crop may begin at; None: the middle.
    left: The same for columns, of the image as it is seen (flipped or not).
    flip: Whether left and right change places.
  """

  top: float | None
  left: float | None
  flip: bool


def draw(seed: int, epoch: int, example_id: int, *, crop: str, flip: bool, image: int = 0) -> View:
  """The view of an example in an epoch, from (seed, epoch, example id) alone.

  Args:
    seed: The run's seed.
    epoch: How often the example was seen before.
    example_id: Identity of the example.
    crop: "center", or "random": uniform over all places.
    flip: Whether half of the views are flipped.
    image: Another number draws another view, for images that are not seen alike.

  Returns:
    `View`.
  """
  # The order of the epoch has the same key; its counter never touches the other three words.
  key, counter = np.array([seed, epoch], np.uint64), np.array([0, 1, example_id, image], np.uint64)
  bits = np.random.Philox(key=key, counter=counter).random_raw(3)
  top, left, side = ((bits >> np.uint64(11)) * 2.0**-53).tolist()
  random = crop == "random"
  return View(top if random else None, left if random else None, flip and side < 0.5)


def check(*, size: int, crop: str, channels: int) -> None:
  """Refuses a size, crop or number of channels that does not exist; raises InputError."""
  if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 8192:
    raise InputError(f"size must be a whole number of pixels from 1 to 8192, got {size!r}")
  if crop not in CROPS:
    raise unknown("crop", crop, CROPS)
  if channels not in CHANNELS:
    raise InputError(
      f"the pipeline takes images of {channels} channels; pairs can be read as 3 (RGB) or 1 (grey)"
    )


def look(
  encoded: bytes, view: View, *, size: int, channels: int, decoding: str = "exact"
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
  """Decodes an image, scales its shorter side to `size`, and cuts out a square.

  Args:
    encoded: JPEG, PNG or WebP, 8-bit RGB.
    view: Where the square lies.
    size: Side of the square in pixels.
    channels: 3, or 1: luma.
    decoding: "draft" decodes large JPEGs smaller, in a fraction of the time; see `images.draft`.

  Returns:
    pixels: uint8 `[size, size, channels]`.
    place: (original height, original width, crop top, crop left); the crop is counted in pixels of
      the scaled image as it is seen.

  Raises:
    UndecodableError: The bytes are no whole image of that kind.
  """
  least = size if decoding == "draft" else None
  image, (height, width), shrunk = images.draft(encoded, least)
  scale = size / min(width, height)
  wide, high = (max(size, round(side * scale)) for side in (width, height))
  top, left = _begin(view.top, high - size), _begin(view.left, wide - size)
  start = wide - size - left if view.flip else left  # in the image as it is stored
  if channels == 1:
    image = image.convert("L")
  if (wide * shrunk, high * shrunk) == (width, height):
    if (wide, high) != (size, size):
      image = image.crop((start, top, start + size, top + size))
  else:
    # Only the square is computed, so that an extreme format takes no more memory than any other.
    # The filter ends at the square's border as it does at the image's.
    width_here, height_here = width / shrunk, height / shrunk
    x, y = width_here / wide, height_here / high
    right, bottom = min((start + size) * x, width_here), min((top + size) * y, height_here)
    image = image.resize(
      (size, size), Image.Resampling.LANCZOS, box=(start * x, top * y, right, bottom)
    )
  if view.flip:  # by Pillow: copying an array backwards costs as much as decoding a JPEG
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image).reshape(size, size, channels), (height, width, top, left)


def stack(pairs: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """A batch of what `look` gave.

  Args:
    pairs: P times two images, uint8 `[H, W, C]`.

  Returns:
    uint8 `[P, 2, H, W, C]`. They stay bytes: floats are made where they are used, on the device;
    making and sending them here cost as much as decoding the JPEGs.
  """
  flat = np.stack([pixels for pair in pairs for pixels in pair])
  return flat.reshape(len(pairs), -1, *flat.shape[1:])


def _begin(place: float | None, room: int) -> int:
  """First row or column of a crop that may begin at 0 to `room`."""
  return room // 2 if place is None else int(place * (room + 1))
