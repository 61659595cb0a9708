"""Pictures of a few images side by side, small enough for a page."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dmpo_jax.evaluation.score_files import read_image

SIDE = 192  # pixels of the longer side of an image on the page
SMALL = 64  # images up to this side are enlarged by a whole factor
LETTERS = 90
GAP, LINE = 4, 200  # width of the line between images, and its grey


def side_by_side(paths: Sequence[pathlib.Path]) -> tuple[str, bytes]:
  """One picture of several images, from left to right.

  Small images are enlarged by a whole factor and stored as PNG, so that their pixels stay exact
  squares; larger ones are reduced and stored as JPEG.

  Args:
    paths: Files of images.

  Returns:
    MIME type and bytes.

  Raises:
    InputError: An image cannot be read.
  """
  images = [read_image(path) for path in paths]
  largest = max(max(image.shape[:2]) for image in images)
  if largest <= SMALL:
    scale = max(1, SIDE // largest)
    images = [image.repeat(scale, axis=0).repeat(scale, axis=1) for image in images]
  elif largest > SIDE:
    images = [_reduced(image, SIDE / largest) for image in images]
  height = max(image.shape[0] for image in images)
  width = sum(image.shape[1] for image in images) + GAP * (len(images) - 1)
  sheet, left = np.full((height, width, 3), LINE, np.uint8), 0
  for image in images:
    sheet[: image.shape[0], left : left + image.shape[1]] = image
    left += image.shape[1] + GAP
  stream, small = io.BytesIO(), largest <= SMALL
  if small:
    Image.fromarray(sheet).save(stream, "PNG", optimize=True)
  else:
    Image.fromarray(sheet).save(stream, "JPEG", quality=88)
  return ("image/png" if small else "image/jpeg"), stream.getvalue()


def shortened(text: str) -> str:
  """A prompt of at most `LETTERS` letters."""
  return text if len(text) <= LETTERS else text[: LETTERS - 1].rstrip() + "…"


def _reduced(image: np.ndarray, factor: float) -> np.ndarray:
  height, width = (max(1, round(side * factor)) for side in image.shape[:2])
  return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
