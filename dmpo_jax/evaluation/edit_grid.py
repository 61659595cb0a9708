"""Edits of several models beside their source images."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from dmpo_jax.evaluation import image_grids
from dmpo_jax.evaluation.score_files import read_image
from dmpo_jax.evaluation.units import Units

GRID = "edits.png"
ROWS = 12
TEXT = 5  # see `image_grids.comparison`
SIDE = 128  # pixels of the longer side of an image in the grid; smaller ones are enlarged


def chosen(units: Units, count: int = ROWS) -> list[int]:
  """Rows of the first images of edits: of each category in turn, at random but always the same.

  Args:
    units: Prompts, seeds and categories.
    count: Number of edits.

  Returns:
    At most `count` rows, ordered by category and then as in the evaluation.
  """
  first = np.flatnonzero(np.diff(units.groups, prepend=-1))
  members: dict[str, list[int]] = {}
  for row in first.tolist():
    members.setdefault(units.categories[row], []).append(row)
  names = list(members)[:count]
  rows = []
  for number, name in enumerate(names):
    share = min(len(members[name]), count // len(names) + (number < count % len(names)))
    # Not evenly spaced: sources may repeat in a period.
    places = np.random.default_rng(number).permutation(len(members[name]))[:share]
    rows += [members[name][place] for place in sorted(places.tolist())]
  return rows


def render(
  units: Units,
  sources: Sequence[pathlib.Path],
  files: Mapping[str, Sequence[pathlib.Path]],
  *,
  path: pathlib.Path | None = None,
) -> bytes:
  """PNG with a row for each of a few edits: instruction, source image, and the edit of each model.

  Args:
    units: The edits.
    sources: Source image of each, N.
    files: Model -> file of each edit, N.
    path: File to write the PNG to; None writes nothing.

  Returns:
    The PNG.

  Raises:
    InputError: An image cannot be read.
  """
  rows = chosen(units)
  columns = {"source": sources, **files}
  images = {
    name: [_small(read_image(paths[row])) for row in rows] for name, paths in columns.items()
  }
  side = max(image.shape[0] for column in images.values() for image in column)
  panels = [
    image_grids.Panel(_ascii(name), "", np.stack([_float(image) for image in column])[:, None])
    for name, column in images.items()
  ]
  labels = [_ascii(units.prompts[row]) for row in rows]
  scale = max(1, SIDE // (2 * side))
  return image_grids.comparison(panels, labels, scale=scale, text_scale=TEXT, path=path)


def _small(image: np.ndarray) -> np.ndarray:
  longest = max(image.shape[:2])
  if longest <= SIDE:
    return image
  height, width = (max(1, round(side * SIDE / longest)) for side in image.shape[:2])
  return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _float(image: np.ndarray) -> np.ndarray:
  return image.astype(np.float32) / 127.5 - 1


def _ascii(text: str) -> str:
  """Text of at most 40 letters that the grid's font has."""
  text = text.encode("ascii", "replace").decode()
  return text if len(text) <= 40 else text[:37] + "..."
