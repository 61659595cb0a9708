"""Text tables, read as a stream: CSV, JSON lines, and a JSON array of objects."""

import codecs
import csv
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

from dmpo_jax.data.convert.tables.chunk import Chunk, Table
from dmpo_jax.errors import InputError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
MAX_ROW = 2**24  # bytes of one row of text
READ_BYTES = 2**20
BOM = codecs.BOM_UTF8
# Bytes that are not UTF-8 become lone surrogates; the check of the row's text names the row.
LENIENT = "surrogateescape"


def plan(root: pathlib.Path, file: str, columns: Sequence[str], *, rows: int) -> Table:
  """Divides a text table into chunks; see `tables.plan`."""
  path = root / file
  if path.suffix in (".csv", ".tsv"):
    with path.open("rb") as stream:
      check_columns(path, columns, _header(path, stream))
  starts, count = [], 0
  with path.open("rb") as stream:
    for start, _ in _items(path, stream, None):
      if count % rows == 0:
        starts.append(start)
      count += 1
  chunks = [
    Chunk(file, i * rows, min(rows, count - i * rows), start, 0) for i, start in enumerate(starts)
  ]
  with path.open("rb") as stream:
    return Table(chunks, hashlib.file_digest(stream, "sha256").hexdigest())


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk, with all their columns; see `tables.read`."""
  del columns, scratch
  path, end = root / chunk.file, chunk.first + chunk.rows
  with path.open("rb") as stream:
    items = _items(path, stream, (chunk.start, chunk.first))
    for number in range(chunk.first, end):
      item = next(items, None)
      if item is None:
        raise InputError(f"{path} ended at row {number}, {end} were announced")
      _, row = item
      yield number, row() if callable(row) else row


def check_columns(path: pathlib.Path, required: Sequence[str], present: Sequence[str]) -> None:
  """Raises InputError if a required column is missing."""
  missing = [name for name in required if name not in present]
  if missing:
    raise InputError(
      f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
      f"it has {', '.join(map(str, present[:40])) or 'none'}"
    )


def _items(path: pathlib.Path, stream, at: tuple[int, int] | None):
  """Pairs of (byte at which a row starts, the row or a function that parses it)."""
  if path.suffix in (".csv", ".tsv"):
    return _csv_rows(path, stream, at)
  head = stream.read(READ_BYTES).removeprefix(BOM).lstrip()
  is_array = head.startswith(b"[")
  stream.seek(0)
  if stream.read(3) != BOM:
    stream.seek(0)
  if is_array:
    return _array_items(path, stream, at)
  return _lines(path, stream, at)


def _lines(path: pathlib.Path, stream, at):
  """Rows of JSON lines; blank lines are skipped."""
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
  """Objects of a JSON array, parsed one at a time in a window on the file."""
  parse = json.JSONDecoder().raw_decode
  decode = codecs.getincrementaldecoder("utf-8")(LENIENT)
  begin, number = at or (stream.tell(), 0)
  stream.seek(begin)
  window, position, ended = "", 0, False
  counted = 0  # `begin` is the byte of the file at which window[counted] lies
  expected = "[" if at is None else "{"

  def byte_offset():
    nonlocal begin, counted
    begin += len(window[counted:position].encode("utf-8", LENIENT))
    counted = position
    return begin

  def grow():
    nonlocal window, position, counted, ended
    byte_offset()
    counted = 0
    more = stream.read(max(READ_BYTES, len(window) - position))
    ended = not more
    window, position = window[position:] + decode.decode(more, final=ended), 0

  def fault(why: str):
    return InputError(f"{path} is no JSON array of objects after {number} rows: {why}")

  while True:
    while position < len(window) and window[position] in " \t\r\n":
      position += 1
    if position == len(window):
      if ended:
        raise fault("it ends without ']'")
      grow()
      continue
    mark = window[position]
    if expected == "[":
      if mark != "[":
        raise fault(f"it starts with {mark!r}")
      position, expected = position + 1, "{]"
    elif expected == ",":
      if mark == "]":
        return
      if mark != ",":
        raise fault(f"expected ',' or ']', found {mark!r}")
      position, expected = position + 1, "{"
    elif mark == "]" and expected == "{]":
      return
    elif mark != "{":
      raise fault(f"expected an object, found {mark!r}")
    else:
      try:
        value, end = parse(window, position)
      except json.JSONDecodeError as error:
        if ended or len(window) - position > MAX_ROW:
          raise fault(f"{error.msg} (or a row of more than {MAX_ROW} bytes)") from error
        grow()
        continue
      except (ValueError, RecursionError) as error:
        raise fault(str(error)) from error
      yield byte_offset(), value
      number += 1
      position, expected = end, ","


def _text_lines(stream, position: list[int]):
  """Decoded lines; `position[0]` is the byte after the last one."""
  while line := stream.readline(MAX_ROW + 1):
    position[0] = stream.tell()
    yield line.decode("utf-8", LENIENT)


def _csv_reader(path: pathlib.Path, stream, position: list[int]):
  delimiter = "\t" if path.suffix == ".tsv" else ","
  return csv.reader(_text_lines(stream, position), delimiter=delimiter, strict=True)


def _header(path: pathlib.Path, stream, position: list[int] | None = None) -> list[str]:
  if stream.read(3) != BOM:
    stream.seek(0)
  try:
    names = next(_csv_reader(path, stream, position or [0]), [])
  except csv.Error as error:
    raise InputError(f"{path}: the header is no CSV: {error}") from error
  names = [name.strip() for name in names]
  if not names or len(set(names)) != len(names) or "" in names:
    raise InputError(f"{path}: the first line must name the columns, each once; got {names[:40]}")
  return names


def _csv_rows(path: pathlib.Path, stream, at):
  """Rows of a CSV file; blank lines are skipped."""
  position = [0]
  names = _header(path, stream, position)
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
        InputError(f"the row has {len(values)} fields, the header of the file {len(names)}"),
      )
    number += 1
