"""Tables in text files: CSV, JSON lines, and a JSON array read as a stream."""

import codecs
import csv
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

from dmpo_jax.errors import InputError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
MAX_ROW = 2**24  # bytes of one row of text
CHUNK = 2**20
BOM = codecs.BOM_UTF8
# Bytes that are not UTF-8 come through as lone surrogates, and the row that holds them is named.
LENIENT = "surrogateescape"


def plan(
  path: pathlib.Path, columns: Sequence[str], *, rows: int
) -> tuple[list[tuple[int, int, int]], str]:
  """Cuts a text table into pieces.

  Args:
    path: The file.
    columns: Names that the head of a CSV file must have.
    rows: Rows in a piece.

  Returns:
    ([(number of the first row, rows, byte at which it starts)], SHA-256 of the file).

  Raises:
    InputError: The file is broken or lacks a column.
  """
  if path.suffix in (".csv", ".tsv"):
    with path.open("rb") as stream:
      check_columns(path, columns, _head(path, stream))
  starts, count = [], 0
  with path.open("rb") as stream:
    for start, _ in _items(path, stream, None):
      if count % rows == 0:
        starts.append(start)
      count += 1
  cuts = [(i * rows, min(rows, count - i * rows), start) for i, start in enumerate(starts)]
  with path.open("rb") as stream:
    return cuts, hashlib.file_digest(stream, "sha256").hexdigest()


def read(
  path: pathlib.Path, *, first: int, rows: int, start: int
) -> Iterator[tuple[int, dict | InputError]]:
  """The rows of a piece, see `tables.read`.

  Args:
    path: The file.
    first: Number of the piece's first row.
    rows: How many rows.
    start: Byte at which the first one starts.

  Yields:
    (number of the row, its values or what is wrong with it).

  Raises:
    InputError: The file cannot be read on.
  """
  with path.open("rb") as stream:
    items = _items(path, stream, (start, first))
    for number in range(first, first + rows):
      found = next(items, None)
      if found is None:
        raise InputError(f"{path} ended at row {number}, {first + rows} were announced")
      yield number, found[1]() if callable(found[1]) else found[1]


def check_columns(path: pathlib.Path, wanted: Sequence[str], present: Sequence[str]) -> None:
  """Raises InputError if a column that is wanted is not there."""
  missing = [name for name in wanted if name not in present]
  if missing:
    raise InputError(
      f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
      f"it has {', '.join(map(str, present[:40])) or 'none'}"
    )


def _items(path: pathlib.Path, stream, at: tuple[int, int] | None):
  """(byte at which a row starts, the row or a function that parses it), from a place on."""
  if path.suffix in (".csv", ".tsv"):
    return _csv_rows(path, stream, at)
  head = stream.read(CHUNK).removeprefix(BOM).lstrip()
  is_array = head.startswith(b"[")
  stream.seek(0)
  if stream.read(3) != BOM:
    stream.seek(0)
  if is_array:
    return _array_items(path, stream, at)
  return _lines(path, stream, at)


def _lines(path: pathlib.Path, stream, at):
  """Rows of JSON lines; blank lines are none."""
  start, number = at or (stream.tell(), 0)
  stream.seek(start)
  while line := stream.readline(MAX_ROW + 1):
    if len(line) > MAX_ROW:
      raise InputError(f"{path}, row {number}: the line is longer than {MAX_ROW} bytes")
    if line.strip():
      yield start, lambda line=line: _parse(line)
      number += 1
    start = stream.tell()


def _parse(line: bytes) -> dict | InputError:
  try:
    value = json.loads(line.decode("utf-8", LENIENT))
  except (ValueError, RecursionError) as error:
    return InputError(f"the line is not JSON: {error}")
  if not isinstance(value, dict):
    return InputError(f"the line must hold an object {{...}}, got {type(value).__name__}")
  return value


def _array_items(path: pathlib.Path, stream, at):
  """Objects of a JSON array, parsed one at a time out of a window on the file."""
  parse = json.JSONDecoder().raw_decode
  decode = codecs.getincrementaldecoder("utf-8")(LENIENT)
  begin, number = at or (stream.tell(), 0)
  stream.seek(begin)
  window, place, ended = "", 0, False
  counted = 0  # `begin` is the byte of the file at which window[counted] lies
  expected = "[" if at is None else "{"

  def byte_of_place():
    nonlocal begin, counted
    begin += len(window[counted:place].encode("utf-8", LENIENT))
    counted = place
    return begin

  def grow():
    nonlocal window, place, counted, ended
    byte_of_place()
    counted = 0
    more = stream.read(max(CHUNK, len(window) - place))
    ended = not more
    window, place = window[place:] + decode.decode(more, final=ended), 0

  def fault(why: str):
    return InputError(f"{path} is no JSON array of objects after {number} rows: {why}")

  while True:
    while place < len(window) and window[place] in " \t\r\n":
      place += 1
    if place == len(window):
      if ended:
        raise fault("it ends without ']'")
      grow()
      continue
    mark = window[place]
    if expected == "[":
      if mark != "[":
        raise fault(f"it starts with {mark!r}")
      place, expected = place + 1, "{]"
    elif expected == ",":
      if mark == "]":
        return
      if mark != ",":
        raise fault(f"expected ',' or ']', found {mark!r}")
      place, expected = place + 1, "{"
    elif mark == "]" and expected == "{]":
      return
    elif mark != "{":
      raise fault(f"expected an object, found {mark!r}")
    else:
      try:
        value, end = parse(window, place)
      except json.JSONDecodeError as error:
        if ended or len(window) - place > MAX_ROW:
          raise fault(f"{error.msg} (or a row of more than {MAX_ROW} bytes)") from error
        grow()
        continue
      except (ValueError, RecursionError) as error:
        raise fault(str(error)) from error
      yield byte_of_place(), value
      number += 1
      place, expected = end, ","


def _text_lines(stream, position: list[int]):
  """Decoded lines; `position[0]` is the byte behind the last one."""
  while line := stream.readline(MAX_ROW + 1):
    position[0] = stream.tell()
    yield line.decode("utf-8", LENIENT)


def _csv_reader(path: pathlib.Path, stream, position: list[int]):
  delimiter = "\t" if path.suffix == ".tsv" else ","
  return csv.reader(_text_lines(stream, position), delimiter=delimiter, strict=True)


def _head(path: pathlib.Path, stream, position: list[int] | None = None) -> list[str]:
  if stream.read(3) != BOM:
    stream.seek(0)
  try:
    names = next(_csv_reader(path, stream, position or [0]), [])
  except csv.Error as error:
    raise InputError(f"{path}: the head is no CSV: {error}") from error
  names = [name.strip() for name in names]
  if not names or len(set(names)) != len(names) or "" in names:
    raise InputError(f"{path}: the first line must name the columns, each once; got {names[:40]}")
  return names


def _csv_rows(path: pathlib.Path, stream, at):
  """Rows of a CSV file; blank lines are none."""
  position = [0]
  names = _head(path, stream, position)
  start, number = at or (position[0], 0)
  stream.seek(start)
  position[0] = start
  reader = _csv_reader(path, stream, position)
  while True:
    start = position[0]
    try:
      values = next(reader, None)
    except csv.Error as error:
      raise InputError(f"{path}, row {number}: not CSV: {error}") from error
    if values is None:
      return
    if not values:
      continue
    if len(values) == len(names):
      yield start, dict(zip(names, values, strict=True))
    else:
      yield (
        start,
        InputError(f"the row has {len(values)} fields, the head of the file {len(names)}"),
      )
    number += 1
