"""A folder of sampled images: resuming it, its image files, grid and manifest."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError

MANIFEST, UNFINISHED, GRID = "manifest.json", "manifest.unfinished.json", "grid.png"
GRID_PIXELS = 2**26


def open_folder(
  folder: pathlib.Path, settings: Mapping[str, Any], names: Sequence[str]
) -> list[bool]:
  """Creates a sample folder, or resumes one with the same settings.

  Args:
    folder: Created if missing; files of other names are left alone.
    settings: Everything that the images depend on, in JSON.
    names: The images' file names.

  Returns:
    For each image whether its file exists.

  Raises:
    InputError: The folder holds images of other settings, or files of these names without a
      manifest, or is a file.
  """
  if folder.exists() and not folder.is_dir():
    raise InputError(f"{folder} is a file; expected a folder for the images")
  for name in (MANIFEST, UNFINISHED):
    if (folder / name).exists():
      _check_same(folder / name, settings)
      return [(folder / file).exists() for file in names]
  for name in (*names, GRID):
    if (folder / name).exists():
      raise InputError(
        f"{folder} has a file {name} and no manifest, so this command did not sample it; give "
        "another folder for the images"
      )
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(settings, indent=2) + "\n"
  write_atomically(folder / UNFINISHED, text)
  return [False] * len(names)


def write_picture(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes uint8 `[H, W, C]` with 1 or 3 channels as PNG, whole or not at all."""
  image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  write_atomically(path, lambda stream: image.save(stream, format="PNG"))


def write_grid(folder: pathlib.Path, names: Sequence[str], columns: int) -> int:
  """Writes a grid of images of one size.

  Args:
    folder: Folder of the images and of the grid.
    names: File names, a multiple of `columns`.
    columns: Images in a row.

  Returns:
    The number of rows in it: the first ones, up to 67 million pixels.
  """
  with Image.open(folder / names[0]) as first:
    width, height = first.size
  fitting = max(1, GRID_PIXELS // (columns * width * height))
  rows = min(len(names) // columns, fitting)
  pictures = np.stack([_read(folder / name) for name in names[: rows * columns]])
  lines = pictures.reshape(rows, columns, *pictures.shape[1:])  # [R, S, H, W, C]
  write_picture(
    folder / GRID, lines.swapaxes(1, 2).reshape(rows * height, columns * width, -1)
  )  # [R * H, S * W, C]
  return rows


def close_folder(
  folder: pathlib.Path, settings: Mapping[str, Any], details: Mapping[str, Any]
) -> None:
  """Writes the manifest: the settings, and `details` that the images do not depend on."""
  text = json.dumps({**settings, **details}, indent=2) + "\n"
  write_atomically(folder / MANIFEST, text)
  (folder / UNFINISHED).unlink(missing_ok=True)


def _check_same(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    different = differences({key: manifest[key] for key in settings if key in manifest}, settings)
  except (ValueError, TypeError) as error:
    raise InputError(
      f"{path} cannot be read ({error}); give another folder for the images"
    ) from error
  if different:
    raise InputError(
      f"{path.parent} holds images of other settings; give another folder:\n{describe(different)}"
    )


def _read(path: pathlib.Path) -> np.ndarray:
  with Image.open(path) as image:
    picture = np.asarray(image)
  return picture if picture.ndim == 3 else picture[..., None]  # [H, W, C]
