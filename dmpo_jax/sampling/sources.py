"""Source images to edit: read from files when they are needed, in the size of the samples."""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dmpo_jax.common import files
from dmpo_jax.data import images
from dmpo_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class Sources:
  """The source image of each of N edits, as files, like an array `[N, H, W, C]`.

  `sources[rows]` selects without reading; `np.asarray(sources)` reads.

  Args:
    paths: N files.
    size: Height and width in pixels that they are resized to, see `fit`.
    channels: 3, or 1: luma.
  """

  dtype = np.dtype(np.uint8)

  def __init__(self, paths: Sequence[pathlib.Path], size: tuple[int, int], channels: int):
    self.paths, self._size, self._channels = list(paths), size, channels

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(N, H, W, C)."""
    return (len(self.paths), *self._size, self._channels)

  def __getitem__(self, rows: np.ndarray) -> "Sources":
    return Sources([self.paths[row] for row in rows], self._size, self._channels)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    fitted = {path: read(path, self._size, self._channels) for path in dict.fromkeys(self.paths)}
    return np.stack([fitted[path] for path in self.paths])  # [N, H, W, C]


def read(path: pathlib.Path, size: tuple[int, int], channels: int) -> np.ndarray:
  """A source image in the size of the samples.

  Args:
    path: JPEG, PNG, WebP, GIF or BMP; made upright and opaque as images of training are.
    size: Height and width in pixels.
    channels: 3, or 1: luma.

  Returns:
    uint8 `[H, W, C]`.

  Raises:
    InputError: The file is missing or no image; the message names it.
  """
  with files.located(path):
    image = images.decode(images.read(files.read_bytes(path, max_bytes=images.MAX_BYTES)).encoded)
  image = image.convert("L") if channels == 1 else image
  return np.asarray(fit(image, size)).reshape(*size, channels)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
  """The middle of an image, scaled to cover a size: as training scales and crops its images.

  Args:
    image: Pillow's image.
    size: Height and width in pixels.

  Returns:
    The image, of that size; unchanged where it has it already.
  """
  (height, width), (wide, high) = size, image.size
  if (wide, high) == (width, height):
    return image
  scale = max(width / wide, height / high)
  covered_w, covered_h = max(width, round(wide * scale)), max(height, round(high * scale))
  left, top = (covered_w - width) // 2, (covered_h - height) // 2
  x, y = wide / covered_w, high / covered_h
  box = (left * x, top * y, min((left + width) * x, wide), min((top + height) * y, high))
  return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def is_cropped(shape: tuple[int, int], size: tuple[int, int]) -> bool:
  """Whether `fit` cuts off more than a pixel at a border of an image of a shape (H, W)."""
  scale = max(size[0] / shape[0], size[1] / shape[1])
  return any(abs(side * scale - kept) > 1 for side, kept in zip(shape, size, strict=True))


def find(source: pathlib.Path) -> list[pathlib.Path]:
  """The image files that a path names: itself, or those of a folder in the order of their names.

  Raises:
    InputError: There is none.
  """
  if source.is_file():
    return [source]
  if not source.is_dir():
    raise InputError(f"{source} is no file and no folder; expected an image or a folder of images")
  found = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
  if not found:
    raise InputError(f"{source} has no images ({', '.join(SUFFIXES)})")
  return found


def digest(paths: Sequence[pathlib.Path]) -> str:
  """SHA-256 of the contents of files, in their order; each file is read once."""
  each = {p: hashlib.sha256(files.read_bytes(p)).digest() for p in dict.fromkeys(paths)}
  return hashlib.sha256(b"".join(each[path] for path in paths)).hexdigest()
