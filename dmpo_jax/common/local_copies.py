"""Copies on the local disk of files and folders in buckets, within a limit of bytes.

Libraries that read safetensors, ArrayRecord or tokenizers want local files. Each file or folder has
an entry in the folder of copies:

    HASH/content/...   the copy
    HASH/index.json    versions of the objects in it, by name; written last
    HASH.sync          locked by the process that downloads; the others of the machine wait
    HASH.use           locked, shared, by processes that use the copy, until they end

What is not used gives way to new copies, the longest unused first.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dmpo_jax.common.bucket import BucketPath
from dmpo_jax.common.bucket_requests import version_of
from dmpo_jax.errors import InputError

FOLDER, LIMIT = "DMPO_JAX_CACHE", "DMPO_JAX_CACHE_GB"
DEFAULT_GB = 200.0
DOWNLOADS = 8  # at once
LOGGER = logging.getLogger(__name__)
_IN_USE: dict[str, int] = {}  # entry -> descriptor with a shared lock


def folder() -> pathlib.Path:
  """The folder of copies: $DMPO_JAX_CACHE, or ~/.cache/dmpo_jax/copies."""
  chosen = os.environ.get(FOLDER)
  base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  return pathlib.Path(chosen) if chosen else base / "dmpo_jax" / "copies"


def limit() -> int:
  """Bytes that copies may take: $DMPO_JAX_CACHE_GB in units of 10^9, or `DEFAULT_GB`."""
  text = os.environ.get(LIMIT) or str(DEFAULT_GB)
  try:
    gigabytes = float(text)
  except ValueError:
    gigabytes = -1.0
  if not 0 < gigabytes < 1e9:
    raise InputError(f"{LIMIT} is {text!r}; expected the gigabytes that copies of files may take")
  return int(gigabytes * 1e9)


def copy(path: BucketPath, choose: Callable[[list[str]], list[str]] | None) -> pathlib.Path:
  """See `paths.local_copy`."""
  listing = path.find()
  is_file = not listing
  if is_file:
    info = path.info()
    if info is None:
      raise InputError(f"{path} is missing")
    listing = {path.name: info}
  chosen = listing if choose is None else {name: listing[name] for name in choose(sorted(listing))}
  wanted = {name: (int(info["size"]), version_of(info)) for name, info in chosen.items()}
  _check_size(path, sum(size for size, _ in wanted.values()))
  entry = hashlib.sha256(str(path).encode()).hexdigest()[:32]
  root = folder()
  root.mkdir(parents=True, exist_ok=True)
  _use(root, entry)
  with _locked(root / f"{entry}.sync"):
    _remove_gone(root / entry, listing)
    _download(path.parent if is_file else path, root, entry, wanted)
  content = root / entry / "content"
  return content / path.name if is_file else content


def _check_size(path: BucketPath, size: int) -> None:
  if size > limit():
    raise InputError(
      f"{path} has {size / 1e9:.1f} GB, and copies of files in buckets may take {limit() / 1e9:g} "
      f"GB of the disk: set {LIMIT} to more, and {FOLDER} to a folder on a disk with room"
    )


def _use(root: pathlib.Path, entry: str) -> None:
  """Marks an entry as used by this process, until it ends."""
  path = root / f"{entry}.use"
  if (key := str(path)) not in _IN_USE:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with contextlib.suppress(OSError):  # a disk without locks
      fcntl.flock(descriptor, fcntl.LOCK_SH)
    _IN_USE[key] = descriptor
  os.utime(path)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  try:
    with contextlib.suppress(OSError):  # a disk without locks
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _download(
  source: BucketPath, root: pathlib.Path, entry: str, wanted: Mapping[str, tuple[int, str]]
) -> None:
  """Downloads the objects that an entry lacks or has in another version."""
  content, index = root / entry / "content", root / entry / "index.json"
  have = _read_index(index)
  new = {
    name: version
    for name, (size, version) in wanted.items()
    if have.get(name) != version or not _has_size(content / name, size)
  }
  if not new:
    return
  _make_room(root, entry, sum(wanted[name][0] for name in new))
  content.mkdir(parents=True, exist_ok=True)

  def fetch(name: str) -> None:
    target = content / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
      (source / name).download(part)
      if not _has_size(part, wanted[name][0]):
        raise OSError(5, "changed while it was downloaded; try again", str(source / name))
      part.replace(target)
    finally:
      part.unlink(missing_ok=True)

  LOGGER.info("downloading %d files of %s to %s", len(new), source, content)
  with ThreadPoolExecutor(DOWNLOADS) as pool:
    list(pool.map(fetch, sorted(new)))
  part = index.with_suffix(".part")
  part.write_text(json.dumps({**have, **new}))
  part.replace(index)


def _remove_gone(entry: pathlib.Path, listing: Mapping[str, Any]) -> None:
  """Removes from a copy what the bucket has no more."""
  for name in _read_index(entry / "index.json").keys() - listing.keys():
    if ".." not in name.split("/"):
      (entry / "content" / name).unlink(missing_ok=True)


def _has_size(path: pathlib.Path, size: int) -> bool:
  try:
    return path.stat().st_size == size
  except OSError:
    return False


def _read_index(index: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(index.read_text())
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def _make_room(root: pathlib.Path, entry: str, needed: int) -> None:
  """Removes entries that no process uses until `needed` bytes more are within the limit."""
  sizes = {path.name: _bytes(path) for path in root.iterdir() if path.is_dir()}
  used, most = sum(sizes.values()), limit()
  marks = {name: root / f"{name}.use" for name in sizes if name != entry}
  for name in sorted(marks, key=lambda name: _changed(marks[name])):
    if used + needed <= most:
      return
    if _remove_unused(root / name, marks[name]):
      used -= sizes[name]
  if used + needed > most:
    raise InputError(
      f"copies of files in buckets may take {most / 1e9:g} GB of the disk ({root}), processes at "
      f"work use {used / 1e9:.1f} GB of it, and {needed / 1e9:.1f} GB more are needed: set {LIMIT} "
      f"to more, and {FOLDER} to a folder on a disk with room"
    )


def _remove_unused(folder: pathlib.Path, mark: pathlib.Path) -> bool:
  """Removes an entry unless a process uses it; returns whether it did."""
  descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "index.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return True
  except OSError:
    return False
  finally:
    os.close(descriptor)


def _changed(path: pathlib.Path) -> float:
  try:
    return path.stat().st_mtime
  except OSError:
    return 0.0


def _bytes(folder: pathlib.Path) -> int:
  total = 0
  for parent, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):
        total += os.stat(os.path.join(parent, name)).st_size
  return total
