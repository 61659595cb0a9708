"""Images of a folder with captions in a table captions.csv.

    file,caption,split
    images/1F34E.png,red apple,train

Without the column `split` all rows belong to "train". Other columns are ignored.
"""

from collections.abc import Iterator

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.data import crops, images
from dmpo_jax.data.convert import row_values, tables
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.pairs import check_prompt
from dmpo_jax.errors import InputError, unknown

TABLE, IMAGES = "captions.csv", "images"
COLUMNS, OPTIONAL = ("file", "caption"), ("split",)


def load(folder: paths.Path, *, size: int, split: str) -> Examples:
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
  table = paths.parse(folder) / TABLE
  examples, splits = [], set()
  for number, row in _rows(table):
    try:
      row_split = row_values.label(row, "split") if "split" in row else "train"
      splits.add(row_split)
      if row_split != split:
        continue
      picture = images.load(row_values.text(row, "file"), table.parent)
      pixels, _ = crops.load(picture.encoded, crops.CENTER, size=size, channels=3)
      caption = check_prompt(row_values.text(row, "caption").lstrip("\ufeff"))
      examples.append((number, caption, pixels))
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


def _rows(table: paths.Path) -> Iterator[tuple[int, dict]]:
  """(number, values by column) of the rows of the table."""
  if not table.is_file():
    raise InputError(f"there is no table {table}")
  for chunk in tables.plan(table.parent, table.name, COLUMNS, optional=OPTIONAL, rows=1000).chunks:
    for number, row in tables.read(table.parent, chunk, (*COLUMNS, *OPTIONAL)):
      if isinstance(row, InputError):
        raise InputError(f"{table}, row {number}: {row}") from row
      yield number, row
