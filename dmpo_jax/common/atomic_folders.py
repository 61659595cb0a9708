"""Folders that are written whole or not at all.

Everything is written to a hidden work folder beside the target:

    .NAME.HOST.RANDOM.partial/
      lock        locked by the writer, as long as it lives
      new/        the new folder
      old/        the former one, where the system cannot exchange two folders
      exchange    the target's name, while the target may be missing

Linux exchanges two folders in one operation (renameat2 with RENAME_EXCHANGE). Where a file system
or another system cannot, the target is missing for a moment between two renames. If the writer is
killed there, `exchange` remains, and `recover` finishes its work.

In a bucket nothing can be exchanged: the new folder is written on the local disk and uploaded, and
the file by which readers know the folder is removed first and comes last. A folder that has it is
whole.
"""

import contextlib
import ctypes
import errno
import functools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

from dmpo_jax.common import paths, unfinished
from dmpo_jax.common.atomic_files import write_error, writing

LOCK, NEW, OLD, EXCHANGE = "lock", "new", "old", "exchange"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def folder_atomically(
  target: str | os.PathLike | paths.Path, *, index: str | None = None
) -> Iterator[pathlib.Path]:
  """Context of a new folder that takes the place of the target at the end.

  A reader sees the old folder or the new one, whenever the writing process dies. After an error the
  target is as it was. What killed processes left beside the target is removed.

  Args:
    target: The folder; one that exists is replaced. Its parents are made.
    index: The file by which readers know that the folder is whole, for a folder in a bucket; None:
      the last by name.

  Yields:
    An empty folder of the local disk to write to.

  Raises:
    OSError: The folder cannot be written.
  """
  target = paths.parse(target).resolve()
  if not isinstance(target, pathlib.Path):
    with paths.scratch_folder() as new:
      yield new
      _upload(new, target, index)
    return
  with _write_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target.parent)
    work, lock = _work_folder(target)
  first = OLD
  try:
    with _write_errors(target):
      yield work / NEW
      _flush(work / NEW)
      _move_into_place(work, target)
      first = NEW
  finally:
    try:
      _finish(work, first)
    finally:
      os.close(lock)


def _upload(new: pathlib.Path, target: paths.BucketPath, index: str | None) -> None:
  """Replaces a folder in a bucket by a local one."""
  names = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
  index = index if index in names else max(names, default=None)
  if index is not None:
    (target / index).unlink(missing_ok=True)
  for name in target.find().keys() - names:
    (target / name).unlink(missing_ok=True)
  target.upload_folder(new, last=index)


def recover(parent: str | os.PathLike | paths.Path) -> None:
  """Completes the exchanges that killed processes left in a folder, and removes their work folders.

  Args:
    parent: The folder in which targets lie. Where it cannot be read or written, nothing happens.
  """
  parent = paths.parse(parent)
  if not isinstance(parent, pathlib.Path):
    return
  for work in unfinished.candidates(parent, unfinished.FOLDER_SUFFIX):
    with contextlib.suppress(OSError):
      work.rmdir()  # killed before it had a lock; fails for a folder with content
    with contextlib.suppress(OSError), unfinished.left_behind(work / LOCK) as is_left:
      if is_left:
        _finish(work, NEW)


def _work_folder(target: pathlib.Path) -> tuple[pathlib.Path, int]:
  """A new work folder with an empty `new`, and the descriptor that holds its lock."""
  while True:
    name = unfinished.temporary_name(target, unfinished.FOLDER_SUFFIX)
    work = target.with_name(f".{name}")
    work.mkdir()
    try:
      lock = unfinished.create(work / LOCK)
    except FileNotFoundError:  # another process removed the folder before it had a lock
      continue
    (work / NEW).mkdir()
    return work, lock


def _flush(folder: pathlib.Path) -> None:
  """Flushes the files of a folder to the disk, so that it is whole after a power failure too."""
  for root, _, names in os.walk(folder):
    for name in names:
      if not os.path.islink(path := os.path.join(root, name)):
        _sync(path)
    with contextlib.suppress(OSError):  # not every file system flushes folders
      _sync(root)


def _sync(path: str | os.PathLike) -> None:
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _move_into_place(work: pathlib.Path, target: pathlib.Path) -> None:
  """Puts `new` where the target is; a former target ends inside the work folder."""
  while True:
    try:
      os.rename(work / NEW, target)  # replaces nothing or an empty folder
      break
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    try:
      _exchange(work / NEW, target)
      break
    except FileNotFoundError:  # another process has removed the target
      continue
    except OSError:
      (work / EXCHANGE).write_bytes(os.fsencode(target.name))
      _sync(work / EXCHANGE)
      _remove(work / OLD)
      with contextlib.suppress(FileNotFoundError):
        os.rename(target, work / OLD)
  with contextlib.suppress(OSError):
    _sync(target.parent)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
  """Exchanges two folders in one operation; raises OSError where that is not possible."""
  rename = _renameat2()
  if rename is None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
  if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), str(other))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
  if not sys.platform.startswith("linux"):
    return None
  return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _finish(work: pathlib.Path, first: str) -> None:
  """Gives a target that is missing a folder, and removes the work folder.

  Args:
    work: The work folder, locked by this process.
    first: The folder that a missing target gets: `OLD` or `NEW`, or the other one without it.
  """
  marker = work / EXCHANGE
  if marker.is_file():
    name = os.fsdecode(marker.read_bytes())
    target = work.parent / name if _is_name(name) else work
    for part in (first, NEW, OLD):
      if not os.path.lexists(target):
        with contextlib.suppress(OSError):
          os.rename(work / part, target)
    if not os.path.lexists(target):
      return  # the only copy lies in the work folder
    marker.unlink()  # first: from here on, nothing in the work folder may become the target
  _remove(work / NEW)
  _remove(work / OLD)
  # The lock goes last: a folder without a lock is removed only if it is empty.
  with contextlib.suppress(OSError):
    if os.listdir(work) == [LOCK]:
      (work / LOCK).unlink()
    work.rmdir()


def _is_name(name: str) -> bool:
  """Whether a text is the name of something in a folder; a file that was cut off may hold none."""
  return name not in ("", ".", "..") and not {"/", "\0"} & set(name)


def _remove(folder: pathlib.Path) -> None:
  """Removes a folder, as far as possible; folders in it may be read-only."""
  for root, _, _ in os.walk(folder):
    with contextlib.suppress(OSError):
      os.chmod(root, 0o700)
  shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _write_errors(target: pathlib.Path) -> Iterator[None]:
  """Names the target, and the file in it, in an error of the system."""
  try:
    with writing(target):
      yield
  except OSError as error:
    reason = error.strerror or str(error)
    _, found, inside = str(error.filename or "").partition(f".{unfinished.FOLDER_SUFFIX}/{NEW}/")
    raise write_error(target, f"{reason}: {inside}" if found else reason, error.errno) from error
