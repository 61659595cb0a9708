"""Images of a folder with captions in a table captions.csv.

    file,caption,split
    images/1F34E.png,red apple,train

Without the column `split` all rows belong to "train". Other columns are ignored.
"""

import csv
import pathlib

import numpy as np

from dmpo_jax.data import crops, images
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.pairs import check_prompt
from dmpo_jax.errors import InputError, unknown

TABLE, IMAGES = "captions.csv", "images"


def load(folder: pathlib.Path, *, size: int, split: str) -> Examples:
  """The images of a split, decoded into memory.

  Args:
    folder: Folder that holds captions.csv. Paths are relative to it and may not leave it.
    size: Side of the square images; the shorter side is scaled to it, then the center is cropped.
    split: Name of the split.

  Returns:
    `Examples` with images `[N, 1, size, size, 3]`; an id is the row's number in the table, from 0.

  Raises:
    InputError: The table is missing, lacks a column or a value, an image is unusable (the message
      names the row), or the split has no row.
  """
  crops.check(size=size, crop="center", channels=3)
  table = pathlib.Path(folder) / TABLE
  examples, splits = [], set()
  for number, row in enumerate(_rows(table)):
    splits.add(row.get("split", "train"))
    if row.get("split", "train") != split:
      continue
    try:
      picture = images.load(row["file"], table.parent)
      pixels, _ = crops.load(picture.encoded, crops.CENTER, size=size, channels=3)
      examples.append((number, check_prompt(row["caption"]), pixels))
    except InputError as error:
      raise InputError(f"{table}, row {number}: {error}") from error
  if not examples:
    raise unknown(f"split of {table}", split, splits)
  ids, captions, pixels = zip(*examples, strict=True)
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
