"""Files that are written whole or not at all."""

import contextlib
import errno
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from dmpo_jax.common import paths, unfinished
from dmpo_jax.errors import InputError

# Errors by which a system refuses a write.
_REFUSALS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
)


def write_atomically(
  path: str | os.PathLike | paths.Path,
  contents: str | bytes | Callable[[IO[bytes]], Any],
  *,
  scratch: str | os.PathLike | paths.Path | None = None,
) -> None:
  """Writes a file under a temporary name, flushes it to the disk, and renames it.

  A reader sees the old file or the new one, whenever the writing process dies. What a killed
  process left of its temporary files in that folder is removed. An object in a bucket is written in
  one request, which does the same.

  Args:
    path: The file; one that exists is replaced. A pipe or a device, such as /dev/stdout, is written
      directly.
    contents: Text (written as UTF-8), bytes, or a function that writes to the binary stream it is
      called with.
    scratch: Folder of the temporary file, on the same disk; None: the file's own folder. A bucket
      needs none.

  Raises:
    OSError: The file cannot be written. An existing file stays as it is.
  """
  path = paths.parse(path)
  if not isinstance(path, pathlib.Path):
    with writing(path):
      _write_object(path, contents)
    return
  if path.exists() and not path.is_file() and not path.is_dir():
    with writing(path), path.open("wb") as stream:
      _write(stream, contents)
    return
  folder = path.parent if scratch is None else pathlib.Path(scratch)
  unfinished.remove_files(folder.absolute())
  temporary = folder / unfinished.temporary_name(path)
  try:
    with writing(path), open(unfinished.create(temporary), "wb") as stream:
      _write(stream, contents)
      stream.flush()
      os.fsync(stream.fileno())
      temporary.replace(path)  # before it is closed, which ends the lock
  except BaseException as error:
    temporary.unlink(missing_ok=True)
    if isinstance(error, OSError):
      raise write_error(path, error.strerror or str(error), error.errno) from error
    raise


def _write_object(
  path: paths.BucketPath, contents: str | bytes | Callable[[IO[bytes]], Any]
) -> None:
  if callable(contents):
    stream = io.BytesIO()
    contents(stream)
    contents = stream.getvalue()
  path.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def _write(stream: IO[bytes], contents: str | bytes | Callable[[IO[bytes]], Any]) -> None:
  if callable(contents):
    contents(stream)
  else:
    stream.write(contents.encode() if isinstance(contents, str) else contents)


@contextlib.contextmanager
def writing(path: str | os.PathLike | paths.Path) -> Iterator[None]:
  """Turns a failed write by another library into an OSError that names the file.

  Libraries in Rust and C report a full disk by exceptions of their own classes.

  Args:
    path: The file or folder that is written.

  Raises:
    OSError: The system refused the write, see `write_error`.
  """
  path = paths.parse(path)
  try:
    yield
  except InputError:
    raise
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise write_error(path, error.strerror or str(error), error.errno) from error
  except Exception as error:
    for number in _REFUSALS:
      if os.strerror(number) in str(error) or f"(os error {number})" in str(error):
        raise write_error(path, os.strerror(number), number) from error
    raise


def write_error(path: paths.Path, reason: str, number: int | None = errno.EIO) -> OSError:
  """The error of a failed write, with advice where the disk is full.

  Args:
    path: The file or folder that could not be written.
    reason: The system's message.
    number: The system's error number.

  Returns:
    An `OSError` to raise.
  """
  if reason.startswith("cannot write ("):
    return OSError(number, reason, str(path))
  full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  advice = "; free space, then run the same command again to resume" if full else ""
  return OSError(number, f"cannot write ({reason}){advice}", str(path))
