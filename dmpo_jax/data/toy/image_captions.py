"""Captioned images in a folder: a table captions.csv beside the files that it names.

    file,caption,split
    images/1F34E.png,red apple,train

The column `split` may be missing: then all belong to "train". Other columns are not read.
"""

import csv
import pathlib

import numpy as np

from dmpo_jax.data import crops, images
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.pairs import check_prompt
from dmpo_jax.errors import InputError, unknown

TABLE, IMAGES = "captions.csv", "images"
CENTER = crops.View(top=None, left=None, flip=False)


def load(folder: pathlib.Path, *, size: int, split: str) -> Examples:
  """The images of a split, decoded into memory.

  Args:
    folder: With captions.csv. Paths are relative to it and may not leave it.
    size: Side of the square images; the shorter side is scaled to it, the middle is kept.
    split: Name of the split.

  Returns:
    `Examples` with images `[N, 1, size, size, 3]`; an id is the row's number in the table, from 0.

  Raises:
    InputError: The table is not there, lacks a column or a value, or an image cannot be used (with
      the row's number); or no row is of that split.
  """
  crops.check(size=size, crop="center", channels=3)
  table = pathlib.Path(folder) / TABLE
  found, splits = [], set()
  for number, row in enumerate(_rows(table)):
    of_row = row.get("split", "train")
    splits.add(of_row)
    if of_row != split:
      continue
    try:
      picture = images.load(row["file"], table.parent)
      pixels, _ = crops.look(picture.encoded, CENTER, size=size, channels=3)
      found.append((number, check_prompt(row["caption"]), pixels))
    except InputError as error:
      raise InputError(f"{table}, row {number}: {error}") from error
  if not found:
    raise unknown(f"split of {table}", split, splits)
  ids, captions, pixels = zip(*found, strict=True)
  stacked = np.stack(pixels)[:, None].astype(np.float32)  # [N, 1, H, W, C]
  return Examples(
    images=stacked / np.float32(127.5) - np.float32(1),
    captions=list(captions),
    ids=np.array(ids, np.uint32),
  )


def _rows(table: pathlib.Path) -> list[dict]:
  try:
    with table.open(encoding="utf-8-sig", newline="") as stream:
      reader = csv.DictReader(stream, strict=True)
      missing = {"file", "caption"} - set(reader.fieldnames or ())
      if missing:
        raise InputError(f"{table} lacks the column {min(missing)!r}; its first line names them")
      rows = list(reader)
  except OSError as error:
    raise InputError(f"cannot read {table}: {error.strerror}") from error
  except (csv.Error, UnicodeDecodeError) as error:
    raise InputError(f"{table} is no table in UTF-8: {error}") from error
  for number, row in enumerate(rows):
    if None in row or None in row.values():
      raise InputError(f"{table}, row {number} has another number of values than the first line")
  return rows
