"""Unfinished files and folders: their names, their locks, and those that killed commands left.

An unfinished file or folder lies beside its target (or in a scratch folder) under a name that
nobody can guess, and its writer holds a lock on it. A lock ends with its process. What is not
locked was left by a killed process, and the next command that writes there removes it.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator

FILE_SUFFIX, FOLDER_SUFFIX = "tmp", "partial"
NAME = re.compile(r".+\.([0-9a-f]{8})\.[0-9a-f]{16}\.(tmp|partial)", re.DOTALL)
# The longest name of a file, less what `temporary_name` appends.
STEM_BYTES = 255 - 40
# Some network file systems lock within one host only: what other hosts wrote counts as left behind
# after a day without a change.
OTHER_HOST_SECONDS = 86_400.0


def temporary_name(path: pathlib.Path, suffix: str = FILE_SUFFIX) -> str:
  """A new name for an unfinished file or folder: no other process uses or can guess it.

  Args:
    path: The target.
    suffix: `FILE_SUFFIX` or `FOLDER_SUFFIX`.

  Returns:
    "NAME.HOST.RANDOM.SUFFIX".
  """
  stem = path.name
  while len(os.fsencode(stem)) > STEM_BYTES:
    stem = stem[:-1]
  return f"{stem}.{_host()}.{secrets.token_hex(8)}.{suffix}"


def create(path: pathlib.Path) -> int:
  """Creates a file that no process sees as left behind, as long as its descriptor is open.

  Args:
    path: The file; it must not exist, not even as a link.

  Returns:
    The descriptor, open for reading and writing, with an exclusive lock where the file system has
    locks.

  Raises:
    OSError: The file exists or cannot be made.
  """
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with contextlib.suppress(OSError):  # no locks there: nobody will remove the file
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
      if os.path.samestat(os.fstat(descriptor), os.stat(path)):
        return descriptor
    except FileNotFoundError:
      pass
    os.close(descriptor)  # another process removed it before it was locked


@functools.cache
def remove_files(folder: pathlib.Path) -> None:
  """Removes the unfinished files that killed processes left in a folder, once in a process.

  Args:
    folder: A folder; without permission to read it, nothing happens.
  """
  for path in candidates(folder, FILE_SUFFIX):
    with contextlib.suppress(OSError), left_behind(path) as is_left:
      if is_left:
        path.unlink(missing_ok=True)


def candidates(folder: pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
  """Files or folders of this user with the name of an unfinished one.

  Args:
    folder: Where to look.
    suffix: `FILE_SUFFIX` for files, `FOLDER_SUFFIX` for folders.

  Yields:
    Their paths; no links.
  """
  try:
    names = os.listdir(folder)
  except OSError:
    return
  for name in names:
    match = NAME.fullmatch(name)
    if match is None or match[2] != suffix:
      continue
    path = folder / name
    try:
      status = path.lstat()
    except OSError:
      continue
    kind = stat.S_ISREG if suffix == FILE_SUFFIX else stat.S_ISDIR
    recent = time.time() - status.st_mtime < OTHER_HOST_SECONDS
    mine = kind(status.st_mode) and status.st_uid == os.geteuid()
    if mine and (match[1] == _host() or not recent):
      yield path


@contextlib.contextmanager
def left_behind(lock: pathlib.Path) -> Iterator[bool]:
  """Locks a file that a killed process may have left.

  Args:
    lock: A file that its writer locks.

  Yields:
    Whether no process holds the lock. Then no other one gets it before the context ends.

  Raises:
    OSError: The file does not exist or cannot be opened.
  """
  descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds it, or there are no locks here
      yield False
      return
    yield True
  finally:
    os.close(descriptor)


@functools.cache
def _host() -> str:
  return hashlib.blake2b(os.fsencode(socket.gethostname()), digest_size=4).hexdigest()
