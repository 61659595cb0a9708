"""A table of rows and the chunks that it is converted in."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from dmpo_jax.errors import InputError, short


class Chunk(NamedTuple):
  """Consecutive rows of a table that can be read without the rows before them.

  Attributes:
    file: Path of the table relative to the source's folder.
    first: Number of the chunk's first row in the table, from 0.
    rows: Number of rows.
    start: Where the chunk starts: a row group (parquet), a byte (text) or an image (folders).
    groups: Number of row groups (parquet); 0 for other tables.
  """

  file: str
  first: int
  rows: int
  start: int
  groups: int


class Table(NamedTuple):
  """A table as it was when the conversion was planned.

  Attributes:
    chunks: The chunks in order; together they hold every row.
    fingerprint: SHA-256 of the file (text), of its size and footer (parquet), or of the names of
      the files (folders).
    not_read: Columns that are not read.
    passed_over: Files and folders that are no part of a row (folders), relative to the source.
  """

  chunks: list[Chunk]
  fingerprint: str
  not_read: tuple[str, ...] = ()
  passed_over: tuple[str, ...] = ()


class MissingColumnsError(InputError):
  """A table lacks required columns.

  Attributes:
    present: The columns that it has.
  """

  def __init__(self, message: str, present: Sequence[str]):
    super().__init__(message)
    self.present = tuple(present)


def check_columns(path: pathlib.Path, required: Sequence[str], present: Sequence[str]) -> None:
  """Raises MissingColumnsError if a required column is missing."""
  missing = [name for name in required if name not in present]
  if not missing:
    return
  only = present[0] if len(present) == 1 else ""
  separator = next((c for c in ",;\t|" if c in only), None)
  hint = ""
  if separator:
    hint = f"; its fields are separated by {separator!r}, which is not read in {path.suffix}"
  names = ", ".join(name if name.isidentifier() else short(name, 40) for name in present[:40])
  raise MissingColumnsError(
    f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
    f"it has {names or 'none'}{hint}",
    present,
  )
