"""A table of rows and the chunks that it is converted in."""

from typing import NamedTuple


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
      the images (folders).
  """

  chunks: list[Chunk]
  fingerprint: str
