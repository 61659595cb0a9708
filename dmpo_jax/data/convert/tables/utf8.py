"""Text files as streams of UTF-8 bytes, and their lines."""

import codecs
import contextlib
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import IO

from dmpo_jax.common.atomic_files import write_error
from dmpo_jax.errors import InputError

MAX_ROW = 2**24  # bytes of one row of text
READ_BYTES = 2**20
# Bytes that are not UTF-8 become lone surrogates; the check of the row's text names the row.
LENIENT = "surrogateescape"
_MARKS = {  # UTF-32 first: its mark begins like UTF-16's
  codecs.BOM_UTF32_LE: "utf-32-le",
  codecs.BOM_UTF32_BE: "utf-32-be",
  codecs.BOM_UTF16_LE: "utf-16-le",
  codecs.BOM_UTF16_BE: "utf-16-be",
}
_AFTER_CR = re.compile(rb"(?<=\r)(?!\n)")


@contextlib.contextmanager
def open_utf8(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Opens a text file after its byte order mark.

  Args:
    path: A file in UTF-8, or in UTF-16 or UTF-32 with a mark; those are read through a temporary
      copy in UTF-8.

  Yields:
    A stream that can be sought.

  Raises:
    InputError: The file has a mark of UTF-16 or UTF-32 and is no such text.
    OSError: The file cannot be read, or the copy not written.
  """
  with contextlib.ExitStack() as stack:
    stream = stack.enter_context(path.open("rb"))
    head = stream.read(4)
    mark = next((mark for mark in _MARKS if head.startswith(mark)), None)
    if mark is not None:
      stream.seek(len(mark))
      copy = stack.enter_context(tempfile.TemporaryFile())
      _recode(path, stream, _MARKS[mark], copy)
      yield copy
    else:
      stream.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
      yield stream


def _recode(path: pathlib.Path, stream: IO[bytes], encoding: str, copy: IO[bytes]) -> None:
  decoder = codecs.getincrementaldecoder(encoding)()
  try:
    while block := stream.read(READ_BYTES):
      copy.write(decoder.decode(block).encode())
    copy.write(decoder.decode(b"", final=True).encode())
    copy.seek(0)
  except UnicodeError as error:
    raise InputError(f"{path} is no {encoding.upper()} text, as its first bytes say") from error
  except OSError as error:
    folder = pathlib.Path(tempfile.gettempdir())
    raise write_error(folder, f"a temporary file: {error.strerror}", error.errno) from error


def lines(path: pathlib.Path, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
  """The lines from the stream's position on, which end at LF, CRLF or CR.

  Args:
    path: The file, for messages.
    stream: From `open_utf8`.

  Yields:
    (byte at which the line starts, the line with its end).

  Raises:
    InputError: A line is longer than `MAX_ROW` bytes.
  """
  start, rest, ended = stream.tell(), b"", False
  while not ended:
    block = stream.readline(READ_BYTES)
    ended = not block
    pieces = _AFTER_CR.split(rest + block)
    # The last piece is incomplete, and a CR at its end may be half of a CRLF.
    rest = b"" if ended or block.endswith(b"\n") else pieces.pop()
    if not rest and not ended and pieces and pieces[-1].endswith(b"\r"):
      rest = pieces.pop()
    for piece in filter(None, pieces):
      yield start, piece
      start += len(piece)
    if len(rest) > MAX_ROW:
      raise InputError(f"{path}: the line at byte {start} is longer than {MAX_ROW} bytes")
