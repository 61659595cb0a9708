"""Ranges of bytes of a file, read by several threads at once."""

import os
import weakref

from dmpo_jax.common import paths

LARGEST = 1 << 30  # bytes of one call of the system


class ByteRanges:
  """A file that is read at any position, and each byte only when it is asked for.

  A local file is opened once: one that is replaced meanwhile is still read as it was. An object in
  a bucket is read by requests of ranges.

  Args:
    path: The file.

  Raises:
    FileNotFoundError: There is none.
    OSError: It cannot be read.
  """

  def __init__(self, path: paths.Path):
    self._remote = path.read_range if paths.is_url(path) else None
    if self._remote is None:
      self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
      weakref.finalize(self, os.close, self._descriptor)
      self.size = os.fstat(self._descriptor).st_size
    else:
      self.size = paths.size(path)

  def read(self, start: int, length: int) -> bytearray:
    """The bytes from `start` on; raises EOFError if the file ends before."""
    if self._remote is not None:
      content = bytearray(self._remote(start, start + length))
      if len(content) != length:
        raise EOFError(f"it ends at byte {start + len(content)}")
      return content
    content, position = bytearray(length), 0
    view = memoryview(content)
    while position < length:
      part = view[position : position + LARGEST]
      count = os.preadv(self._descriptor, [part], start + position)
      if not count:
        raise EOFError(f"it ends at byte {start + position}")
      position += count
    return content
