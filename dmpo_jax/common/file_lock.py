"""Locks on files, which end with the process that holds them; in buckets, leases."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import IO, Any

from dmpo_jax.common import leases, paths
from dmpo_jax.errors import InputError

LOGGER = logging.getLogger(__name__)
# Errors of disks that have no locks.
_WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def lock(
  path: paths.Path, busy: str, *, shared: bool = False, wait: bool = False
) -> Iterator[IO[str] | leases.Lease]:
  """Locks a file for the processes of all hosts that see it.

  On a disk without locks nothing is locked.

  Args:
    path: The file; created if missing. In a bucket, the name of a `leases.lease`.
    busy: Message if another process has locked the file.
    shared: Whether others may hold the lock too, if theirs are shared; not in a bucket.
    wait: Whether to wait until the file is free.

  Yields:
    The open file, or the lease.

  Raises:
    InputError: The file is locked.
    OSError: The file cannot be opened.
  """
  if isinstance(path, paths.BucketPath):
    if shared:
      raise ValueError(f"a bucket has no shared locks: {path}")
    with leases.lease(path, busy, wait=wait) as held:
      yield held
    return
  kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
  while True:
    stream: Any = path.open("a+", encoding="utf-8")
    try:
      fcntl.flock(stream, kind)
    except OSError as error:
      if error.errno not in _WITHOUT:
        stream.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
          raise InputError(busy) from error
        raise
    with stream:
      # The process that held the lock may have removed the file.
      if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
        yield stream
        return


@contextlib.contextmanager
def folder_lock(folder: paths.Path, busy: str) -> Iterator[None]:
  """Creates a folder if it is missing, and locks it.

  Args:
    folder: The folder.
    busy: Message if another process has locked it.

  Raises:
    InputError: It is locked.
  """
  if isinstance(folder, paths.BucketPath):
    with leases.lease(folder / "lock", busy):
      yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(busy) from error
    except OSError:  # a file system without locks
      LOGGER.debug("%s cannot be locked", folder)
    yield
  finally:
    os.close(descriptor)


def write_note(path: paths.Path, text: str) -> None:
  """Writes a text for all who see a lock; its holder calls this."""
  _note(path).write_text(text)


def read_note(path: paths.Path) -> str | None:
  """The text of `write_note`; None before there is a lock."""
  try:
    return _note(path).read_text()
  except FileNotFoundError:
    return None


def _note(path: paths.Path) -> paths.Path:
  return path / "note" if isinstance(path, paths.BucketPath) else path
