"""Paths of the local disk and of buckets: the only module that asks which of the two a path is.

`parse` makes a `pathlib.Path` of a local name and a `BucketPath` of a URL. Both have the same
methods for names, listings, reading, and removing a file, so that most code needs nothing else.
What differs goes through functions: files are written by `atomic_files.write_atomically`, folders
by `atomic_folders.folder_atomically`, locks are taken by `file_lock.lock`, and a library that wants
a file of the local disk is given `local_copy` or `local_output`.
"""

import argparse
import contextlib
import io
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

from dmpo_jax.common import bucket_requests, local_copies
from dmpo_jax.common.bucket import BucketPath
from dmpo_jax.errors import InputError, short

Path = pathlib.Path | BucketPath

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


def parse(path: "str | os.PathLike | Path") -> Path:
  """The path of a text: of a bucket where it begins with a scheme such as gs://, else local.

  Args:
    path: A text, or a path, which is returned as it is.

  Raises:
    InputError: The scheme is not supported, or the text names nothing in a bucket.
  """
  if isinstance(path, BucketPath):
    return path
  text = os.fspath(path)
  scheme = _SCHEME.match(text) if isinstance(text, str) else None
  if scheme is None:
    return pathlib.Path(path)
  if "://" not in text:
    if scheme[1].lower() in bucket_requests.SCHEMES:  # pathlib makes gs:/bucket of gs://bucket
      raise InputError(f"{short(text)} has one slash after {scheme[1]}:, where two are needed")
    return pathlib.Path(path)
  return BucketPath.parse(text)


def argument(text: str) -> Path:
  """`parse` for options of a command: its errors are argparse's."""
  try:
    return parse(text)
  except InputError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def local_argument(text: str) -> pathlib.Path:
  """The path of an option that must be on the local disk; refuses URLs with argparse's error."""
  if isinstance(path := argument(text), BucketPath):
    raise argparse.ArgumentTypeError(
      f"{path} lies in a bucket, which this option does not take; copy it to a local disk, or give "
      "a local folder and copy that to the bucket"
    )
  return path


def check_holds_checkpoints(path: Path) -> None:
  """Raises InputError for a folder that orbax cannot write checkpoints to: one on S3."""
  if isinstance(path, BucketPath) and path.scheme != "gs":
    raise InputError(
      f"{path}: orbax writes checkpoints to local folders and gs:// only; give such a work "
      "directory (data, pipelines, exports and images may lie there)"
    )


def is_url(path: "str | os.PathLike | Path") -> bool:
  """Whether a text or path is of a bucket, for messages and for what has a name of both kinds."""
  return isinstance(parse(path), BucketPath)


def size(path: Path) -> int:
  """Bytes of a file."""
  return path.stat().st_size


def local_copy(
  path: "str | os.PathLike | Path", *, choose: Callable[[list[str]], list[str]] | None = None
) -> pathlib.Path:
  """A file or folder on the local disk: a local path itself, or a cached copy of one in a bucket.

  Copies lie in the folder of `local_copies.folder`, of at most `local_copies.limit` bytes; each
  object is downloaded once per machine, and again when it has changed. They are read-only for their
  users.

  Args:
    path: A file or folder.
    choose: Chooses among the names of a folder's files, relative with slashes, those to copy; None:
      all.

  Raises:
    InputError: The file or folder is missing, or is larger than the limit.
    OSError: The copy cannot be written, or the storage does not answer.
  """
  path = parse(path)
  return local_copies.copy(path, choose) if isinstance(path, BucketPath) else path


def readable(path: Path) -> pathlib.Path | io.BytesIO:
  """A local path itself, or a stream of an object's bytes, for libraries that read either."""
  return io.BytesIO(path.read_bytes()) if isinstance(path, BucketPath) else path


@contextlib.contextmanager
def local_output(path: Path) -> Iterator[pathlib.Path]:
  """Context of a local path for a library that writes a file or a folder itself.

  A local path is given as it is. What was written for a bucket is uploaded at the end of a context
  without an error: files in the order of their names.

  Args:
    path: The target.
  """
  if not isinstance(path, BucketPath):
    yield path
    return
  with scratch_folder() as folder:
    target = folder / path.name
    yield target
    if target.is_dir():
      path.upload_folder(target)
    elif target.exists():
      path.upload(target)


@contextlib.contextmanager
def scratch_folder() -> Iterator[pathlib.Path]:
  """Context of an empty local folder in the system's folder of temporary files ($TMPDIR)."""
  with tempfile.TemporaryDirectory(prefix="dmpo_jax.") as folder:
    yield pathlib.Path(folder)


def move(source: Path, target: Path) -> None:
  """Gives a file another name on its disk or in its bucket, where it is copied by the storage.

  Args:
    source: The file; of a killed move in a bucket, both names may stay.
    target: Its new name; a file there is replaced.
  """
  if isinstance(source, BucketPath):
    source.copy(target)
    source.unlink(missing_ok=True)
  else:
    source.replace(target)


def remove_tree(path: Path) -> None:
  """Removes a folder and all in it, as far as possible."""
  if isinstance(path, BucketPath):
    with contextlib.suppress(OSError):
      path.remove_all()
  else:
    shutil.rmtree(path, ignore_errors=True)


def exists(path: Path) -> bool:
  """Whether there is something at a path, be it a link to nothing."""
  return path.exists() if isinstance(path, BucketPath) else os.path.lexists(path)


def same(one: "str | os.PathLike | Path", other: "str | os.PathLike | Path") -> bool:
  """Whether two paths are the same after links."""
  return parse(one).resolve() == parse(other).resolve()
