"""Paths in buckets, with the methods of `pathlib.Path` that the package uses.

Objects are written whole or not at all, nothing is appended to and nothing is renamed. A folder is
a common beginning of names. Google Cloud Storage (gs://) is read and written through gcsfs, which
the extra "gcs" installs; S3 (s3://) through s3fs where it is installed.
"""

import fnmatch
import functools
import io
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

from dmpo_jax.common.bucket_requests import (
  SCHEMES,
  check_bucket,
  filesystem,
  retrying,
  seconds_of,
  version_of,
)
from dmpo_jax.errors import InputError, short

# Objects up to this size are read in one request.
WHOLE_BYTES = 1 << 26
# Characters that some of the libraries in between take for patterns, queries or escapes.
_ODD = re.compile(r"[\x00-\x1f\x7f\\?#*\[\]]|[\ud800-\udfff]")
_MAX_NAME = 1024  # bytes of an object's name in Google Cloud Storage and S3
T = TypeVar("T")


class Status(NamedTuple):
  """The fields of `os.stat_result` that are used."""

  st_size: int
  st_mode: int
  st_mtime: float

  @property
  def st_mtime_ns(self) -> int:
    """The time of change in nanoseconds."""
    return int(self.st_mtime * 1e9)


@functools.total_ordering
class BucketPath:
  """A file or folder in a bucket. It is no `os.PathLike`: what wants a local file refuses it."""

  __slots__ = ("parts", "scheme")

  def __init__(self, scheme: str, parts: tuple[str, ...]):
    self.scheme, self.parts = scheme, parts

  @classmethod
  def parse(cls, url: str) -> "BucketPath":
    """The path of a URL; raises InputError for another scheme and for an odd name."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
      raise InputError(
        f"{short(url)}: {scheme}:// is not supported; expected a local path, gs:// (Google Cloud "
        "Storage) or s3://"
      )
    parts = rest.rstrip("/").split("/")
    if not parts[0]:
      raise InputError(f"{short(url)} names no bucket; expected {scheme}://BUCKET/FOLDER")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", parts[0]):
      raise InputError(
        f"{short(url)}: {short(parts[0])} is no name of a bucket, which has 3 and more small "
        "letters, digits, dots, dashes and underscores"
      )
    for part in parts[1:]:
      if part in ("", ".", ".."):
        raise InputError(f"{short(url)} has the part {part!r} in its path; take it out")
      if odd := _ODD.search(part):
        raise InputError(
          f"{short(url)} has the character {odd[0]!r} in its path, which storage libraries read as "
          "something else; use letters, digits, dots, dashes and underscores"
        )
    path = cls(scheme, tuple(parts))
    if len(path.key.encode()) > _MAX_NAME - 200:  # names of files in the folder follow
      raise InputError(f"{short(url)} is too long: an object's name has at most {_MAX_NAME} bytes")
    return path

  # Names.

  @property
  def bucket(self) -> str:
    """Name of the bucket."""
    return self.parts[0]

  @property
  def key(self) -> str:
    """Name of the object in the bucket."""
    return "/".join(self.parts[1:])

  @property
  def name(self) -> str:
    """The last part."""
    return self.parts[-1]

  @property
  def stem(self) -> str:
    """The last part without its suffix."""
    return pathlib.PurePosixPath(self.name).stem

  @property
  def suffix(self) -> str:
    """The last part's suffix."""
    return pathlib.PurePosixPath(self.name).suffix

  @property
  def parent(self) -> "BucketPath":
    """The folder; the bucket is its own parent."""
    return BucketPath(self.scheme, self.parts[:-1] or self.parts) if len(self.parts) > 1 else self

  @property
  def parents(self) -> list["BucketPath"]:
    """The folders above, the bucket last."""
    return [BucketPath(self.scheme, self.parts[:n]) for n in range(len(self.parts) - 1, 0, -1)]

  def __truediv__(self, other: "str | os.PathLike") -> "BucketPath":
    text = str(other)
    if text.startswith("/"):
      raise InputError(f"{short(text)} is absolute; paths in {self} are relative to it")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    if ".." in parts or re.search(r"[\x00\r\n]", text):
      raise InputError(f"{short(text)} is no name of a file in {self}")
    return BucketPath(self.scheme, self.parts + parts)

  def joinpath(self, *others: "str | os.PathLike") -> "BucketPath":
    """`self / one / other ...`."""
    return functools.reduce(lambda path, other: path / other, others, self)

  def with_name(self, name: str) -> "BucketPath":
    """The path with another last part."""
    return self.parent / name

  def with_suffix(self, suffix: str) -> "BucketPath":
    """The path with another suffix."""
    return self.with_name(self.stem + suffix)

  def relative_to(self, other: "BucketPath") -> pathlib.PurePosixPath:
    """The path from a folder above to this one; raises ValueError if it is not above."""
    if not self.is_relative_to(other):
      raise ValueError(f"{self} does not lie in {other}")
    return pathlib.PurePosixPath(*self.parts[len(other.parts) :])

  def is_relative_to(self, other: Any) -> bool:
    """Whether a path is this one or above it."""
    return (
      isinstance(other, BucketPath)
      and other.scheme == self.scheme
      and self.parts[: len(other.parts)] == other.parts
    )

  def absolute(self) -> "BucketPath":
    """The path itself."""
    return self

  def resolve(self, strict: bool = False) -> "BucketPath":
    """The path itself: buckets have no links."""
    return self

  def is_absolute(self) -> bool:
    """True."""
    return True

  def as_posix(self) -> str:
    """The URL."""
    return str(self)

  def __str__(self) -> str:
    return f"{self.scheme}://" + "/".join(self.parts)

  def __repr__(self) -> str:
    return f"BucketPath({str(self)!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, BucketPath) and str(self) == str(other)

  def __lt__(self, other: "BucketPath") -> bool:
    return (self.scheme, self.parts) < (other.scheme, other.parts)

  def __hash__(self) -> int:
    return hash(str(self))

  # Reading.

  def exists(self) -> bool:
    """Whether there is an object of this name, or one in this folder."""
    return self.info() is not None

  def is_file(self) -> bool:
    """Whether there is an object of this name."""
    info = self.info()
    return info is not None and info["type"] == "file"

  def is_dir(self) -> bool:
    """Whether there is an object in this folder."""
    info = self.info()
    return info is not None and info["type"] == "directory"

  def is_symlink(self) -> bool:
    """False."""
    return False

  def stat(self) -> Status:
    """Size, kind and time of change; raises FileNotFoundError."""
    info = self.info()
    if info is None:
      raise FileNotFoundError(2, "No such file", str(self))
    kind = stat.S_IFREG if info["type"] == "file" else stat.S_IFDIR
    return Status(int(info.get("size") or 0), kind | 0o644, seconds_of(info))

  lstat = stat

  def version(self) -> str:
    """A text that changes whenever the object is written; raises FileNotFoundError."""
    info = self.info()
    if info is None:
      raise FileNotFoundError(2, "No such file", str(self))
    return version_of(info)

  def read_bytes(self) -> bytes:
    """The object's bytes; raises FileNotFoundError."""
    return self._do("read", lambda fs: fs.cat_file(self._fs_name()))

  def read_range(self, start: int, end: int) -> bytes:
    """The object's bytes from `start` to `end`; raises FileNotFoundError."""
    if end <= start:
      return b""
    return self._do("read", lambda fs: fs.cat_file(self._fs_name(), start=start, end=end))

  def read_text(self, encoding: str = "utf-8") -> str:
    """The object's text."""
    return self.read_bytes().decode(encoding)

  def open(self, mode: str = "r", *, encoding: str = "utf-8", **options: Any) -> IO:
    """Opens the object for reading ("r", "rb"); see `atomic_files.write_atomically` for writing."""
    if mode not in ("r", "rt", "rb"):
      raise ValueError(f"an object in a bucket is written whole, not opened as {mode!r}: {self}")
    count = self.stat().st_size
    if count <= WHOLE_BYTES:
      raw: Any = io.BytesIO(self.read_bytes())
    else:
      raw = io.BufferedReader(RangeReader(self, count), buffer_size=1 << 23)
    return raw if mode == "rb" else io.TextIOWrapper(raw, encoding=encoding, **options)

  def iterdir(self) -> Iterator["BucketPath"]:
    """Files and folders directly in this folder; raises FileNotFoundError if there is none."""
    names = self._do("list", lambda fs: fs.ls(self._fs_name(), detail=False))
    own = self._fs_name()
    names = {name.rstrip("/") for name in names} - {own}
    yield from (self / name[len(own) + 1 :] for name in sorted(names))

  def find(self) -> dict[str, dict[str, Any]]:
    """Listing of all objects in this folder at every depth by relative name; empty without any."""

    def read(fs):
      try:
        return fs.find(self._fs_name(), detail=True)
      except FileNotFoundError:
        return {}

    own = self._fs_name() + "/"
    listing = self._do("list", read)
    return {
      name[len(own) :]: info
      for name, info in listing.items()
      if name.startswith(own) and not name.endswith("/")
    }

  def rglob(self, pattern: str) -> Iterator["BucketPath"]:
    """Files, at every depth, whose name fits a pattern."""
    for name in sorted(self.find()):
      if fnmatch.fnmatchcase(name.rsplit("/", 1)[-1], pattern):
        yield self / name

  def glob(self, pattern: str) -> Iterator["BucketPath"]:
    """Files and folders that fit a pattern of names with slashes; without `**`."""
    first, _, rest = pattern.partition("/")
    try:
      children = list(self.iterdir())
    except FileNotFoundError:
      return
    for child in children:
      if fnmatch.fnmatchcase(child.name, first):
        yield from child.glob(rest) if rest else [child]

  # Writing.

  def write_bytes(self, content: bytes) -> None:
    """Writes the object whole."""
    self._do("write", lambda fs: fs.pipe_file(self._fs_name(), bytes(content)))

  def write_text(self, text: str, encoding: str = "utf-8") -> None:
    """Writes the object whole."""
    self.write_bytes(text.encode(encoding))

  def create(self, content: bytes) -> None:
    """Writes a new object; raises FileExistsError if there is one, whoever is faster."""
    try:
      self._do("write", lambda fs: fs.pipe_file(self._fs_name(), content, mode="create"))
    except FileExistsError:
      # A repeated request meets the object that it has made, if an answer was lost.
      if self.read_bytes() != content:
        raise

  def upload(self, local: pathlib.Path) -> None:
    """Writes the object whole from a local file."""
    self._do("write", lambda fs: fs.put_file(str(local), self._fs_name()))

  def upload_folder(self, local: pathlib.Path, *, last: str | None = None) -> None:
    """Uploads all files of a local folder into this one, one named `last` after the others."""
    names = sorted(p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file())
    for name in sorted(names, key=lambda name: name == last):
      (self / name).upload(local / name)

  def download(self, local: pathlib.Path) -> None:
    """Writes the object's bytes to a local file."""
    self._do("read", lambda fs: fs.get_file(self._fs_name(), str(local)))

  def copy(self, target: "BucketPath") -> None:
    """Copies the object to another name, within the storage; raises FileNotFoundError."""
    self._do("write", lambda fs: fs.cp_file(self._fs_name(), target._fs_name()))

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the object; raises FileNotFoundError."""
    try:
      self._do("remove", lambda fs: fs.rm_file(self._fs_name()))
    except FileNotFoundError:
      if not missing_ok:
        raise

  def remove_all(self) -> None:
    """Removes all objects in this folder."""
    for name in self.find():
      (self / name).unlink(missing_ok=True)

  def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: a folder is there with its first object."""

  def rmdir(self) -> None:
    """Does nothing: a folder is gone with its last object."""

  # Requests.

  def _fs_name(self) -> str:
    return "/".join(self.parts)

  def info(self) -> dict[str, Any] | None:
    """The entry of the object or folder as in `find`; None if there is none."""
    try:
      return self._do("read", lambda fs: fs.info(self._fs_name()))
    except FileNotFoundError:
      return None

  def _do(self, what: str, request: Callable[[Any], T]) -> T:
    try:
      return retrying(self, what, lambda: request(filesystem(self.scheme)))
    except FileNotFoundError as error:
      check_bucket(self.scheme, self.bucket)
      raise FileNotFoundError(2, "No such file", str(self)) from error


class RangeReader(io.RawIOBase):
  """An object as a seekable stream, which reads it in ranges.

  Args:
    path: The object.
    size: Its bytes.
  """

  def __init__(self, path: BucketPath, size: int):
    self._path, self._size, self._at = path, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer) -> int:
    content = self._path.read_range(self._at, min(self._at + len(buffer), self._size))
    buffer[: len(content)] = content
    self._at += len(content)
    return len(content)
