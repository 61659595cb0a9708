"""Paths of images in tables that others wrote: they stay in a folder, however they are spelled."""

import functools
import os
import pathlib
import unicodedata
from collections.abc import Iterator

from dmpo_jax.common import files
from dmpo_jax.errors import InputError, short


def inside(name: str, root: pathlib.Path) -> pathlib.Path:
  """Resolves the path of a file that must lie in a folder.

  A name that is not there is looked for in the spellings that other systems give it: another
  Unicode form (macOS), backslashes, and a suffix in another case (Windows).

  Args:
    name: Path relative to the folder, or an absolute path that lies in it.
    root: The folder. In the cache of the Hugging Face hub a snapshot's links may lead to its
      `blobs`; no other link may leave the folder.

  Returns:
    Path of an ordinary file.

  Raises:
    InputError: The path leaves the folder, itself or by a link, or names no ordinary file.
  """
  quoted = short(name, 200)
  if not name or "\0" in name:
    raise InputError(f"the path {quoted} names no file")
  try:
    relative = _spelled(root, _relative(name, root))
  except (OSError, ValueError) as error:  # too long, not encodable
    raise InputError(f"the path {quoted} cannot be opened: {files.reason(error)}") from error
  try:
    path = files.inside(root, relative)
  except InputError as error:
    words = pathlib.PurePosixPath(relative)
    if words.is_absolute() or ".." in words.parts or not (root / words).exists():
      raise
    raise InputError(f"{error}; {_advice(root, relative)}") from error
  try:
    is_file = path.is_file()
  except OSError as error:
    raise InputError(f"the path {quoted} cannot be opened: {files.reason(error)}") from error
  if not is_file:
    raise InputError(f"there is no file {quoted} in {root}")
  return path


def same_name(name: str) -> str:
  """Form of a file's name that no system changes: NFC, with the suffix in lower case."""
  path = pathlib.PurePosixPath(unicodedata.normalize("NFC", name))
  return path.stem + path.suffix.lower()


def _relative(name: str, root: pathlib.Path) -> str:
  """A path relative to the root where it lies in it by its words; else as it is."""
  if name.startswith("/"):
    for base in (root.absolute(), root.resolve()):
      normal = pathlib.PurePosixPath(os.path.normpath(name))
      if normal != base and normal.is_relative_to(base):
        return str(normal.relative_to(base))
    return name
  return os.path.normpath(name) if ".." in pathlib.PurePosixPath(name).parts else name


def _spelled(root: pathlib.Path, name: str) -> str:
  """The spelling of a path under which there is a file; as given if there is none or several."""
  spellings = list(_spellings(name))
  for spelling in spellings:
    if (root / spelling).exists():
      return spelling
  for spelling in spellings:
    path = pathlib.PurePosixPath(spelling)
    try:  # the folder is listed only if it lies in the root
      folder = files.inside(root, str(path.parent))
    except InputError:
      continue
    if folder.is_dir():
      names = _names(folder, folder.stat().st_mtime_ns).get(same_name(path.name), ())
      if len(names) == 1:
        return str(path.with_name(names[0]))
  return name


@functools.lru_cache(maxsize=4)
def _names(folder: pathlib.Path, changed: int) -> dict[str, list[str]]:
  """The names in a folder by `same_name`; `changed` is the time of its last change."""
  del changed
  names = {}
  for name in os.listdir(folder):
    names.setdefault(same_name(name), []).append(name)
  return names


def _spellings(name: str) -> Iterator[str]:
  for text in dict.fromkeys((name, name.replace("\\", "/"))):
    forms = (text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))
    yield from dict.fromkeys(forms)


def _advice(root: pathlib.Path, name: str) -> str:
  """Advice about a link that leaves the folder."""
  target, parts = (root / name).resolve(), pathlib.PurePosixPath(name).parts
  if target.parts[-len(parts) :] == parts:
    return f"--images {pathlib.Path(*target.parts[: -len(parts)])} reads it"
  return (
    "give the folder that it leads to by --images, and paths relative to that folder, or copy the "
    "images"
  )
