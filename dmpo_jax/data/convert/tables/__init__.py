"""Tables of rows on disk, read chunk by chunk in bounded memory."""

import pathlib
from collections.abc import Iterator, Sequence

from dmpo_jax.data.convert.tables import edit_folders, image_folders, parquet, text
from dmpo_jax.data.convert.tables.chunk import Chunk, MissingColumnsError, Table
from dmpo_jax.errors import InputError, unknown

# A format is a module with `plan` and `read`, which take the arguments of the functions below.
FORMATS = {".parquet": parquet, **dict.fromkeys(text.SUFFIXES, text)}

__all__ = ["FORMATS", "Chunk", "MissingColumnsError", "Table", "plan", "read"]


def plan(
  root: pathlib.Path,
  file: str,
  columns: Sequence[str],
  *,
  rows: int,
  optional: Sequence[str] = (),
) -> Table:
  """Divides a table into chunks.

  Args:
    root: Folder of the source.
    file: Table relative to `root`: a .parquet, .csv, .tsv, .json or .jsonl file, the folder of
      the preferred images (see `image_folders`), or `root` itself (see `edit_folders`).
    columns: Required columns. The first rows of JSON stand for all.
    rows: Smallest number of rows of a chunk but the last; parquet is divided between row groups
      only.
    optional: Further columns that are read where they exist.

  Returns:
    `Table`.

  Raises:
    InputError: The file is missing, empty, damaged or of an unknown format, or lacks a column.
  """
  path = root / file
  if not path.is_dir():
    if not path.is_file():
      raise InputError(f"there is no file {path}")
    if not path.stat().st_size:
      raise InputError(f"{path} is empty (0 bytes)")
  table = _format(path).plan(root, file, columns, optional=optional, rows=rows)
  if not table.chunks:
    raise InputError(f"{path} holds no row")
  return table


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk, one at a time.

  Args:
    root: Folder of the source.
    chunk: From `plan`.
    columns: Columns to read. Text formats read all columns.
    scratch: Folder for temporary files (parquet with large row groups); None: the system's.

  Returns:
    Iterator of (number of the row in its table from 0, values by column or the row's error).

  Raises:
    InputError: The table became unreadable after this row.
  """
  return _format(root / chunk.file).read(root, chunk, columns, scratch=scratch)


def _format(path: pathlib.Path):
  if path.is_dir():
    return image_folders if path.name == image_folders.PREFERRED else edit_folders
  if path.suffix.lower() not in FORMATS:
    raise unknown("kind of table", path.name, FORMATS)
  return FORMATS[path.suffix.lower()]
