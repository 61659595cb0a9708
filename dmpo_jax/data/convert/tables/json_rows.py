"""Rows of JSON lines and of a JSON array of objects, read as a stream."""

import codecs
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import IO

from dmpo_jax.common.files import reason
from dmpo_jax.data.convert.tables import utf8
from dmpo_jax.errors import InputError

# (byte at which the row starts, the row or a function that parses it)
Rows = Iterator[tuple[int, dict | Callable[[], dict | InputError]]]


def rows(path: pathlib.Path, stream: IO[bytes], at) -> Rows:
  """The rows of a file; blank lines are skipped.

  Args:
    path: The file.
    stream: From `utf8.open_utf8`, at the file's beginning.
    at: (byte, number) of the row to start at; None: the first one.

  Returns:
    See `Rows`.

  Raises:
    InputError: The file is no JSON array from some row on, or a line is too long.
  """
  start = stream.tell()
  is_array = stream.read(utf8.READ_BYTES).lstrip().startswith(b"[")
  stream.seek(start)
  return (_array_items if is_array else _lines)(path, stream, at)


def _lines(path: pathlib.Path, stream: IO[bytes], at) -> Rows:
  stream.seek(at[0] if at else stream.tell())
  for start, line in utf8.lines(path, stream):
    if line.strip():
      yield start, lambda line=line: _parse(line)


def _parse(line: bytes) -> dict | InputError:
  try:
    value = json.loads(line.decode("utf-8", utf8.LENIENT).lstrip("\ufeff"))
  except (ValueError, RecursionError) as error:
    return InputError(f"the line is not JSON: {reason(error)}")
  if not isinstance(value, dict):
    return InputError(f"the line must hold an object {{...}}, got {type(value).__name__}")
  return value


def _array_items(path: pathlib.Path, stream: IO[bytes], at) -> Rows:
  """Objects of a JSON array, parsed one at a time in a window on the file."""
  parse = json.JSONDecoder().raw_decode
  decode = codecs.getincrementaldecoder("utf-8")(utf8.LENIENT)
  begin, number = at or (stream.tell(), 0)
  stream.seek(begin)
  window, position, ended = "", 0, False
  counted = 0  # `begin` is the byte of the file at which window[counted] lies
  expected = "[" if at is None else "{"

  def byte_offset():
    nonlocal begin, counted
    begin += len(window[counted:position].encode("utf-8", utf8.LENIENT))
    counted = position
    return begin

  def grow():
    nonlocal window, position, counted, ended
    byte_offset()
    counted = 0
    more = stream.read(max(utf8.READ_BYTES, len(window) - position))
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
        if ended or len(window) - position > utf8.MAX_ROW:
          raise fault(f"{error.msg} (or a row of more than {utf8.MAX_ROW} bytes)") from error
        grow()
        continue
      except (ValueError, RecursionError) as error:
        raise fault(reason(error)) from error
      yield byte_offset(), value
      number += 1
      position, expected = end, ","
