"""Source images to edit: read from files when they are needed, in the size of the samples."""

import hashlib
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dmpo_jax.common import files
from dmpo_jax.data import image_paths, images
from dmpo_jax.data.prompt_sets import IMAGE_SUFFIXES, PromptSet
from dmpo_jax.errors import InputError

FOLDER = "sources"  # of the copies in a folder of samples

LOGGER = logging.getLogger(__name__)


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
    fitted = {path: self.read(path) for path in dict.fromkeys(self.paths)}
    return np.stack([fitted[path] for path in self.paths])  # [N, H, W, C]

  def read(self, path: pathlib.Path) -> np.ndarray:
    """The image of a file, uint8 `[H, W, C]`, in the size of the samples.

    JPEG, PNG, WebP, GIF and BMP are made 8-bit RGB, upright and opaque as images of training are.

    Raises:
      InputError: The file is missing or no image; the message names it.
    """
    image = _decoded(path)
    image = image.convert("L") if self._channels == 1 else image
    return np.asarray(fit(image, self._size)).reshape(self.shape[1:])

  def check(self) -> None:
    """Reads every file once; raises InputError for one that cannot be used, warns of crops."""
    paths = list(dict.fromkeys(self.paths))
    cropped = [path for path in paths if is_cropped(_decoded(path).size[::-1], self._size)]
    if cropped:
      LOGGER.warning(
        "%d of %d source images have another aspect ratio than the %dx%d of the edits and lose two "
        "of their borders, the first is %s; --height and --width set another size",
        *(len(cropped), len(paths), *self._size, cropped[0]),
      )


def _decoded(path: pathlib.Path) -> Image.Image:
  encoded = files.read_bytes(
    path, advice="check the path of the source image", max_bytes=images.MAX_BYTES
  )
  with files.located(path):
    return images.decode(images.read(encoded).encoded)


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
  found = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
  if not found:
    raise InputError(f"{source} has no images ({', '.join(IMAGE_SUFFIXES)})")
  return found


def copy_name(row: int) -> str:
  """Name of the copy of the source image of a prompt, in a folder of samples."""
  return f"{FOLDER}/{row:05d}.png"


def pair(prompts: PromptSet, source: pathlib.Path | None, file: pathlib.Path | None) -> PromptSet:
  """The edits of a set of instructions.

  - A set that names a source image for each instruction: these edits. Paths are relative to the
    folder `source`; without one, to the folder of the set's file.
  - Another set, with `source`: every instruction on every image of `source`, image by image.
  - Another set, without `source`: the prompts themselves.

  Args:
    prompts: The set.
    source: An image or a folder of images; None: none.
    file: The file of the set; None without one.

  Returns:
    The set with the path of the source image of each prompt; `sources` is None without any.

  Raises:
    InputError: `source` does not exist or has no image, is a file where a folder is meant, or a
      file that the set names is missing.
  """
  if prompts.sources is not None:
    folder = source if source is not None else file.parent
    if not folder.is_dir():
      raise InputError(
        f"{file} names the source image of each prompt, and --source is {folder}; expected the "
        "folder that the names are relative to"
      )
    named = zip(prompts.sources, prompts.places, strict=True)
    return prompts._replace(sources=[_named(name, folder, where) for name, where in named])
  if source is None:
    return prompts
  each = [(str(path), i) for path in find(source) for i in range(len(prompts.prompts))]
  rows = [i for _, i in each]
  return PromptSet(
    [prompts.prompts[i] for i in rows],
    [prompts.categories[i] for i in rows],
    [prompts.places[i] for i in rows],
    prompts.repeated,
    [path for path, _ in each],
  )


def _named(name: str, folder: pathlib.Path, where: str) -> str:
  with files.located(where):
    return str(image_paths.inside(name, folder))


def digest(paths: Sequence[pathlib.Path]) -> str:
  """SHA-256 of the contents of files, in their order; each file is read once."""
  each = {p: hashlib.sha256(files.read_bytes(p)).digest() for p in dict.fromkeys(paths)}
  return hashlib.sha256(b"".join(each[path] for path in paths)).hexdigest()
