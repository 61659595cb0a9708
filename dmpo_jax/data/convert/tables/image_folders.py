"""Three folders read as a table: winner/NAME.png, loser/NAME.png, captions/NAME.txt.

A fourth folder, source/NAME.png, holds the images that both were edited from. Every name in any of
the folders is a row, with the columns of a custom table: id (NAME), prompt, image_0, image_1,
label_0 and, with sources, condition. A name that lacks a file, or has two in one folder, is a bad
row. The order of the two images is random, because a position that gives away the label teaches
nothing else.
"""

import functools
import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dmpo_jax.common import files
from dmpo_jax.data import image_paths
from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.tables.chunk import Chunk, Table
from dmpo_jax.data.pairs import MAX_PROMPT_CHARACTERS, preferred_first
from dmpo_jax.errors import InputError, short

PREFERRED, REJECTED, CAPTIONS = FOLDERS = ("winner", "loser", "captions")
SOURCE = "source"  # only of edits
TEXTS = (".txt", ".caption")
# Suffixes of images. Those of formats that are not read make bad rows.
IMAGES = (
  *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".apng", ".dib"),
  *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".tga", ".dng", ".psd"),
  *(".ico", ".svg", ".exr", ".hdr", ".ppm", ".pgm", ".pbm", ".pnm", ".raw", ".cr2", ".nef"),
)
SUFFIXES = {PREFERRED: IMAGES, REJECTED: IMAGES, CAPTIONS: TEXTS, SOURCE: IMAGES}
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")


class Names(NamedTuple):
  """The contents of the folders.

  Attributes:
    folders: `FOLDERS`, and `SOURCE` where it exists.
    rows: Name -> the files of that name by folder, sorted by name.
    passed_over: Other files and folders: hidden ones, and those with other suffixes.
  """

  folders: tuple[str, ...]
  rows: Mapping[str, Mapping[str, Sequence[str]]]
  passed_over: tuple[str, ...]


def plan(
  root: pathlib.Path, file: str, columns: Sequence[str], *, optional: Sequence[str], rows: int
) -> Table:
  """Divides the pairs into chunks.

  Args:
    root: Folder that holds the three folders.
    file: Folder of the preferred images relative to `root`.
    columns: Not used: the columns are fixed.
    optional: Not used.
    rows: Pairs of a chunk.

  Returns:
    `Table`. Its fingerprint covers the files' names, not their content.

  Raises:
    InputError: A folder is missing or is a link that leaves `root`, or there is no image.
  """
  del columns, optional
  names = _names(root)
  count = len(names.rows)
  chunks = [Chunk(file, i, min(rows, count - i), i, 0) for i in range(0, count, rows)]
  every = [f"{d}/{f}" for row in names.rows.values() for d in names.folders for f in row[d]]
  digest = hashlib.sha256("\0".join(every).encode("utf-8", "surrogateescape"))
  return Table(chunks, digest.hexdigest(), passed_over=names.passed_over)


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk; arguments and results as `tables.read` describes them."""
  del columns, scratch
  rows = list(_names(root).rows.items())
  if len(rows) < chunk.first + chunk.rows:
    raise InputError(f"{root / PREFERRED} lost files since the conversion began; start a new one")
  for number in range(chunk.first, chunk.first + chunk.rows):
    try:
      yield number, _row(root, *rows[number])
    except InputError as error:
      yield number, error


def _names(root: pathlib.Path) -> Names:
  """The files in the three folders.

  Raises:
    InputError: A folder is missing or is a link that leaves `root`, or there is no image.
  """
  missing = [folder for folder in FOLDERS if not (root / folder).is_dir()]
  if missing:
    raise InputError(f"{root} needs the folders {', '.join(FOLDERS)}; missing: {missing}")
  folders = (*FOLDERS, SOURCE) if (root / SOURCE).is_dir() else FOLDERS
  for folder in folders:
    try:
      files.inside(root, folder, "folder")
    except InputError as error:
      raise InputError(
        f"{error}; copy its files into {root / folder}, or name them in a table beside which they "
        "lie (see --images)"
      ) from error
  changed = tuple((root / folder).stat().st_mtime_ns for folder in folders)
  names = _scan(root, folders, changed)
  if not any(row[PREFERRED] for row in names.rows.values()):
    raise InputError(f"{root / PREFERRED} holds no image ({', '.join(IMAGES[:8])}, ...)")
  return names


@functools.lru_cache(maxsize=1)
def _scan(root: pathlib.Path, folders: tuple[str, ...], changed: tuple[int, ...]) -> Names:
  """Lists the folders, once for each time of their last `changed`."""
  del changed
  rows, passed_over = {}, []
  for folder in folders:
    for name in sorted(os.listdir(root / folder)):
      stem, suffix = os.path.splitext(name)
      path = root / folder / name
      hidden = name.startswith(".") or name.lower() in SYSTEM_FILES
      if hidden or suffix.lower() not in SUFFIXES[folder] or path.is_dir():
        passed_over.append(f"{folder}/{name}{'/' * path.is_dir()}")
        continue
      key = unicodedata.normalize("NFC", stem)
      rows.setdefault(key, {f: [] for f in folders})[folder].append(name)
  return Names(folders, dict(sorted(rows.items())), tuple(passed_over))


def _row(root: pathlib.Path, name: str, row: Mapping[str, Sequence[str]]) -> dict:
  for folder in row:
    what = "text" if folder == CAPTIONS else "image"
    if len(row[folder]) != 1:
      others = [f"{f}/{file}" for f in row if f != folder for file in row[f]]
      problem = (
        f"found {', '.join(short(file) for file in row[folder])}"
        if row[folder]
        else f"found none for {', '.join(short(file) for file in others)}"
      )
      raise InputError(f"{folder}/ must hold one {what} {short(name)}, {problem}")
  preferred, rejected, caption = (f"{folder}/{row[folder][0]}" for folder in FOLDERS)
  first = preferred_first(name)
  source = {"condition": f"{SOURCE}/{row[SOURCE][0]}"} if SOURCE in row else {}
  return source | {
    "id": name,
    "prompt": _caption(root, caption),
    "image_0": preferred if first else rejected,
    "image_1": rejected if first else preferred,
    "label_0": 1.0 if first else 0.0,
  }


def _caption(root: pathlib.Path, name: str) -> str:
  try:
    path = image_paths.inside(name, root)
    text = files.read_text(path, max_bytes=4 * (MAX_PROMPT_CHARACTERS + 1))
  except OSError as error:
    raise InputError(f"cannot read {short(name)}: {error.strerror}") from error
  if "\0" in text:
    raise InputError(f"{short(name)} holds NUL characters; save it as UTF-8")
  return row_values.text({"caption": text.strip()}, "caption")
