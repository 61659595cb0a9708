"""Locks on files, which end with the process that holds them; in buckets, leases."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import IO, Any

from dmpo_jax.common import leases, paths
from dmpo_jax.errors import InputError

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
