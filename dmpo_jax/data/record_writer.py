"""ArrayRecord files that appear under their names when they are complete."""

import contextlib
import errno
import os
import pathlib

from dmpo_jax.common import paths, unfinished
from dmpo_jax.common.atomic_files import write_error
from dmpo_jax.data import resumable

WRITER_OPTIONS = "group_size:1,zstd:1"  # images hardly compress


def count_records(path: pathlib.Path) -> int:
  """Number of records of an ArrayRecord file, from its end; -1 if it is no such file."""
  from array_record.python.array_record_module import ArrayRecordReader

  try:
    reader = ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
  except (RuntimeError, ValueError):
    return -1
  return count


class RecordWriter:
  """Writes an ArrayRecord file that appears under its name when it is complete.

  Args:
    path: The file.
    scratch: Folder on the same disk that holds the file until it is complete. One for a bucket is
      written in the system's folder of temporary files, and uploaded.

  Attributes:
    path: As given.
    count: Records written so far.
    fingerprint: That of the complete file, after `finish`.

  Raises:
    OSError: The file cannot be written; the message names it, and a full disk if that is why.
  """

  def __init__(self, path: paths.Path, scratch: paths.Path):
    from array_record.python.array_record_module import ArrayRecordWriter

    self.path, self.count, self._stack = path, 0, contextlib.ExitStack()
    self.fingerprint: resumable.Fingerprint | None = None
    try:
      if paths.is_url(path):
        scratch = self._stack.enter_context(paths.scratch_folder())
      self.temporary = pathlib.Path(scratch) / unfinished.temporary_name(pathlib.Path(path.name))
      # Its lock keeps other processes from removing the file. It ends when this object does.
      self._stack.enter_context(os.fdopen(unfinished.create(self.temporary), "rb"))
    except OSError as error:
      raise write_error(path, error.strerror or str(error), error.errno) from error
    self.writer = self._try(ArrayRecordWriter, str(self.temporary), WRITER_OPTIONS)

  def write(self, record: bytes) -> None:
    """Appends a record."""
    self._try(self.writer.write, record)
    self.count += 1

  def finish(self) -> None:
    """Closes the file, checks that it holds all records, and renames it."""
    self._try(self.writer.close)
    if count_records(self.temporary) != self.count:
      raise OSError(errno.EIO, "the file does not hold all records written to it", str(self.path))
    self.fingerprint = resumable.fingerprint(self.temporary)
    if paths.is_url(self.path):
      self.path.upload(self.temporary)
    else:
      with self.temporary.open("rb") as stream:
        os.fsync(stream.fileno())
      self.temporary.replace(self.path)
    self._stack.close()

  def discard(self) -> None:
    """Removes the incomplete file."""
    self.temporary.unlink(missing_ok=True)
    self._stack.close()

  def _try(self, call, *arguments):
    try:
      return call(*arguments)
    except RuntimeError as error:  # ArrayRecord's error for a failed system call
      numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
      number = next((n for n in numbers if os.strerror(n) in str(error)), errno.EIO)
      raise write_error(self.path, str(error), number) from error
