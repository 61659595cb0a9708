"""Rows of CSV and TSV files as spreadsheets and data frames write them."""

import csv
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from dmpo_jax.data.convert.tables import utf8
from dmpo_jax.errors import InputError, short

# Characters between fields by suffix, the usual one first.
DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
# (byte at which the row starts, its values by column or its error)
Rows = Iterator[tuple[int, dict | InputError]]


class Header(NamedTuple):
  """The first line of a file.

  Attributes:
    names: Name of each field, "" where it has none.
    delimiter: Character between fields: a comma, a semicolon or a tab.
    spaced: Whether delimiters are followed by spaces, which are no part of the fields.
    end: Byte after the line.
  """

  names: list[str]
  delimiter: str
  spaced: bool
  end: int

  @property
  def least(self) -> int:
    """Fields that a row must have: up to the last one that has a name."""
    return max(i for i, name in enumerate(self.names, start=1) if name)


def header(path: pathlib.Path, stream: IO[bytes], columns: Sequence[str]) -> Header:
  """Reads the first line.

  Args:
    path: The file.
    stream: From `utf8.open_utf8`, at the file's beginning.
    columns: Columns that are read. Others may have no name, or one name twice.

  Returns:
    `Header`.

  Raises:
    InputError: The line is no CSV, names no column, or names one of `columns` twice.
  """
  start, lines, problem = stream.tell(), [], None
  for delimiter in DELIMITERS[path.suffix.lower()]:
    stream.seek(start)
    position = [start]
    try:
      fields = next(_reader(path, stream, position, delimiter, spaced=False), [])
      lines.append((fields, delimiter, position[0]))
    except csv.Error as error:
      problem = problem or error
  if not lines:
    raise InputError(f"{path}: the header is no CSV: {problem}") from problem
  # Of the delimiters the one that gives the most of the columns, the first one of several.
  fields, delimiter, end = max(
    lines, key=lambda line: sum(field.strip() in columns for field in line[0])
  )
  names = [name.strip() for name in fields]
  if not any(names):
    raise InputError(f"{path}: the first line must name the columns; it names none")
  repeated = [name for name, n in Counter(names).items() if n > 1 and name in columns]
  if repeated:
    raise InputError(
      f"{path}: the first line must name each column once; {short(repeated[0])} occurs twice"
    )
  spaced = len(fields) > 1 and all(field.startswith(" ") for field in fields[1:])
  return Header(names, delimiter, spaced, end)


def rows(path: pathlib.Path, stream: IO[bytes], columns: Sequence[str], at) -> Rows:
  """The rows of a file; blank lines are skipped.

  Args:
    path: The file.
    stream: From `utf8.open_utf8`, at the file's beginning.
    columns: See `header`.
    at: (byte, number) of the row to start at; None: the first one.

  Yields:
    See `Rows`.

  Raises:
    InputError: The file is no CSV from some row on.
  """
  head = header(path, stream, columns)
  start, number = at or (head.end, 0)
  stream.seek(start)
  position = [start]
  reader = _reader(path, stream, position, head.delimiter, spaced=head.spaced)
  while True:
    start = position[0]
    try:
      values = next(reader, None)
    except csv.Error as error:
      raise InputError(f"{path}, row {number}: not CSV: {error}") from error
    if values is None:
      return
    if values:
      yield start, _row(head, values)
      number += 1


def _row(head: Header, values: list[str]) -> dict | InputError:
  expected = len(head.names)
  if not head.least <= len(values) or any(value.strip() for value in values[expected:]):
    return InputError(f"the row has {len(values)} fields, the header of the file {expected}")
  return {name: value for name, value in zip(head.names, values, strict=False) if name}


def _reader(
  path: pathlib.Path, stream: IO[bytes], position: list[int], delimiter: str, *, spaced: bool
):
  """csv's reader; `position[0]` is the byte after the last line that it took."""

  def text() -> Iterator[str]:
    for start, line in utf8.lines(path, stream):
      position[0] = start + len(line)
      yield line.decode("utf-8", utf8.LENIENT)

  csv.field_size_limit(utf8.MAX_ROW)  # a column that is not needed may hold more than 131,072
  return csv.reader(text(), delimiter=delimiter, skipinitialspace=spaced, strict=True)
