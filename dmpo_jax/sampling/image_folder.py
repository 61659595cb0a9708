"""A folder of sampled images: resuming it, its image files, grid and manifest."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dmpo_jax.common import file_lock, files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError

MANIFEST, UNFINISHED, GRID = "manifest.json", "manifest.unfinished.json", "grid.png"
GRID_PIXELS = 2**26
IMAGE = re.compile(r"\d{5,}_\d{10}\.png")

LOGGER = logging.getLogger(__name__)


def image_name(row: int, seed: int) -> str:
  """File name of the image of a prompt, by its position, and a seed."""
  return f"{row:05d}_{seed:010d}.png"


@contextlib.contextmanager
def locked(folder: paths.Path) -> Iterator[None]:
  """Creates a folder if it is missing, and keeps other processes from sampling into it.

  Args:
    folder: The folder.

  Raises:
    InputError: It is a file, or another process samples into it.
  """
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder} is a file; expected a folder for the images")
  busy = f"another process is sampling into {folder}; wait, or give another folder"
  with file_lock.folder_lock(folder, busy):
    yield


def open_folder(
  folder: paths.Path,
  settings: Mapping[str, Any],
  names: Sequence[str],
  *,
  shape: tuple[int, int, int],
) -> list[bool]:
  """Begins a sample folder, or resumes one with the same settings.

  Args:
    folder: The folder, `locked`; files of other names are left alone.
    settings: Everything that the images depend on, in JSON.
    names: The images' file names, as `image_name` gives them.
    shape: Height, width and channels of the images.

  Returns:
    For each image whether its file is there. A damaged one counts as missing, with a warning.

  Raises:
    InputError: The folder holds images of other settings, or files of these names without a
      manifest.
  """
  manifest = next((n for n in (MANIFEST, UNFINISHED) if (folder / n).exists()), None)
  images = any(IMAGE.fullmatch(name) or name == GRID for name in _names(folder))
  if manifest is not None and images:
    _check_same(folder / manifest, settings)
    exist = [(folder / name).exists() for name in names]
    whole = [e and _is_picture(folder / n, shape) for e, n in zip(exist, names, strict=True)]
    if damaged := sum(exist) - sum(whole):
      first = names[[e and not w for e, w in zip(exist, whole, strict=True)].index(True)]
      LOGGER.warning(
        "%d of the images in %s are damaged, the first is %s; sampling them again",
        damaged,
        folder,
        first,
      )
    return whole
  for name in (*names, GRID) if images else ():
    if (folder / name).exists():
      raise InputError(
        f"{folder} has a file {name} and no manifest, so this command did not sample it; give "
        "another folder for the images"
      )
  # A manifest without images belongs to a command that ended before its first one.
  (folder / MANIFEST).unlink(missing_ok=True)
  text = json.dumps(settings, indent=2) + "\n"
  write_atomically(folder / UNFINISHED, text)
  return [False] * len(names)


def _names(folder: paths.Path) -> list[str]:
  try:
    return [path.name for path in folder.iterdir()]
  except FileNotFoundError:  # a new folder in a bucket
    return []


def write_picture(path: paths.Path, picture: np.ndarray) -> None:
  """Writes uint8 `[H, W, C]` with 1 or 3 channels as PNG, whole or not at all."""
  image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  write_atomically(path, lambda stream: image.save(stream, format="PNG"))


def write_grid(folder: paths.Path, names: Sequence[str], columns: int) -> int:
  """Writes a grid of images of one size.

  Args:
    folder: Folder of the images and of the grid.
    names: File names, a multiple of `columns`.
    columns: Images in a row.

  Returns:
    The number of rows in it: the first ones, up to 67 million pixels.
  """
  with Image.open(paths.readable(folder / names[0])) as first:
    width, height = first.size
  fitting = max(1, GRID_PIXELS // (columns * width * height))
  rows = min(len(names) // columns, fitting)
  pictures = np.stack([_read(folder / name) for name in names[: rows * columns]])
  lines = pictures.reshape(rows, columns, *pictures.shape[1:])  # [R, S, H, W, C]
  write_picture(
    folder / GRID, lines.swapaxes(1, 2).reshape(rows * height, columns * width, -1)
  )  # [R * H, S * W, C]
  return rows


def listed(
  names: Sequence[str],
  prompts: Sequence[str],
  seeds: Sequence[int],
  *,
  sources: Sequence[str] | None = None,
  source_files: Sequence[str] | None = None,
  captions: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
  """The images of a manifest.

  Args:
    names: File names, N.
    prompts: Prompt of each.
    seeds: Seed of each.
    sources: Of edits, the copy of the source image of each in the folder.
    source_files: Of edits, the file of each source image.
    captions: Of edits, captions of source and target of each.

  Returns:
    N objects with file, prompt, seed and, of edits, source, source_file and captions.
  """
  columns: dict[str, Sequence[Any] | None] = {
    "file": names,
    "prompt": prompts,
    "seed": seeds,
    "source": sources,
    "source_file": source_files,
    "source_caption": captions and [before for before, _ in captions],
    "target_caption": captions and [after for _, after in captions],
  }
  columns = {key: column for key, column in columns.items() if column is not None}
  return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def close_folder(
  folder: paths.Path, settings: Mapping[str, Any], details: Mapping[str, Any]
) -> None:
  """Writes the manifest: the settings, and `details` that the images do not depend on."""
  text = json.dumps({**settings, **details}, indent=2) + "\n"
  write_atomically(folder / MANIFEST, text)
  (folder / UNFINISHED).unlink(missing_ok=True)


def _check_same(path: paths.Path, settings: Mapping[str, Any]) -> None:
  manifest = files.read_json(path, advice="give another folder for the images")
  different = differences({key: manifest[key] for key in settings if key in manifest}, settings)
  if different:
    raise InputError(
      f"{path.parent} holds images of other settings; give another folder:\n{describe(different)}"
    )


def _is_picture(path: paths.Path, shape: tuple[int, int, int]) -> bool:
  """Whether a file is a whole PNG of a shape [H, W, C]."""
  height, width, channels = shape
  try:
    with Image.open(paths.readable(path), formats=("PNG",)) as image:
      fits = image.size == (width, height) and image.mode == ("L" if channels == 1 else "RGB")
      if fits:
        image.verify()  # the checksums of all its parts
      return fits
  except Exception:  # Pillow raises whatever a damaged file makes it meet
    return False


def _read(path: paths.Path) -> np.ndarray:
  with Image.open(paths.readable(path)) as image:
    picture = np.asarray(image)
  return picture if picture.ndim == 3 else picture[..., None]  # [H, W, C]
