"""Text tables, read as a stream: CSV, JSON lines, and a JSON array of objects."""

import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO

from dmpo_jax.data.convert.tables import csv_rows, json_rows, utf8
from dmpo_jax.data.convert.tables.chunk import Chunk, Table, check_columns
from dmpo_jax.errors import InputError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
FIRST_ROWS = 20  # rows of a JSON table whose keys are its columns


def plan(
  root: pathlib.Path, file: str, columns: Sequence[str], *, optional: Sequence[str], rows: int
) -> Table:
  """Divides a text table into chunks; see `tables.plan`."""
  path, known = root / file, (*columns, *optional)
  names = _column_names(path, known)
  if names is not None:
    check_columns(path, columns, names)
  starts, count = [], 0
  with utf8.open_utf8(path) as stream:
    for start, _ in _rows(path, stream, known, None):
      if count % rows == 0:
        starts.append(start)
      count += 1
  chunks = [
    Chunk(file, i * rows, min(rows, count - i * rows), start, 0) for i, start in enumerate(starts)
  ]
  with path.open("rb") as stream:
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
  return Table(chunks, digest, not_read=tuple(name for name in names or () if name not in known))


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk, with all their columns; see `tables.read`."""
  del scratch
  path, end = root / chunk.file, chunk.first + chunk.rows
  with utf8.open_utf8(path) as stream:
    items = _rows(path, stream, columns, (chunk.start, chunk.first))
    for number in range(chunk.first, end):
      item = next(items, None)
      if item is None:
        raise InputError(f"{path} ended at row {number}, {end} were announced")
      _, row = item
      yield number, row() if callable(row) else row


def _column_names(path: pathlib.Path, known: Sequence[str]) -> list[str] | None:
  """Names of the columns; None where the first rows of JSON are no objects."""
  with utf8.open_utf8(path) as stream:
    if _is_csv(path):
      return [name for name in csv_rows.header(path, stream, known).names if name]
    names: dict[str, None] = {}
    first = [
      row() if callable(row) else row
      for _, row in itertools.islice(json_rows.rows(path, stream, None), FIRST_ROWS)
    ]
  objects = [row for row in first if isinstance(row, dict)]
  for row in objects:
    names |= dict.fromkeys(row)
  return list(names) if objects else None


def _is_csv(path: pathlib.Path) -> bool:
  return path.suffix.lower() in (".csv", ".tsv")


def _rows(path: pathlib.Path, stream: IO[bytes], columns: Sequence[str], at):
  """(byte at which a row starts, the row or a function that parses it)."""
  if _is_csv(path):
    return csv_rows.rows(path, stream, columns, at)
  return json_rows.rows(path, stream, at)
