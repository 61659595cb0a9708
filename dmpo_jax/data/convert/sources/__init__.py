"""Where preference pairs come from: one file per published set, and one's own pairs."""

import pathlib
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from dmpo_jax.data.convert import tables
from dmpo_jax.data.convert.sources import (
  custom_folders,
  custom_table,
  hpdv2,
  hpdv3,
  imagerewarddb,
  open_image_preferences,
  pickapic,
)
from dmpo_jax.data.convert.sources.raw_pair import LABELS, Draft, no_votes
from dmpo_jax.errors import InputError, unknown

PUBLISHED = {
  "pickapic": pickapic,
  "hpdv2": hpdv2,
  "hpdv3": hpdv3,
  "imagerewarddb": imagerewarddb,
  "open-image-preferences": open_image_preferences,
}
OWN = "pairs"
KINDS = (*PUBLISHED, OWN)

__all__ = ["KINDS", "LABELS", "Draft", "Source", "drafts", "find", "plan", "read"]


class Source(NamedTuple):
  """A data set on disk.

  Attributes:
    kind: One of `KINDS`.
    part: Which of the set's own divisions ("train"); "" for one's own pairs.
    root: Folder that the tables lie in.
    images: Folder that paths of images are relative to.
    files: Tables relative to `root`; empty for winner and loser folders.
  """

  kind: str
  part: str
  root: pathlib.Path
  images: pathlib.Path
  files: list[str]


def _module(source: Source) -> ModuleType:
  """Reads the source's rows. (No field of `Source`: that one goes to other processes.)"""
  if source.kind != OWN:
    return PUBLISHED[source.kind]
  return custom_table if source.files else custom_folders


def find(
  kind: str, path: pathlib.Path, *, part: str = "train", images: pathlib.Path | None = None
) -> Source:
  """Looks a data set up on disk.

  Args:
    kind: One of `KINDS`.
    path: Its folder, or one table; for one's own pairs a table or a folder with `winner/`,
      `loser/` and `captions/`.
    part: Which of the set's own divisions; not used for one's own pairs.
    images: Folder of the images where it is not where the set has it.

  Returns:
    `Source`.

  Raises:
    InputError: The kind or part is unknown, or the files are not there.
  """
  if kind not in KINDS:
    raise unknown("source", kind, KINDS)
  path = pathlib.Path(path)
  if not path.exists():
    raise InputError(f"there is no file or folder {path}")
  if images is not None and not pathlib.Path(images).is_dir():
    raise InputError(f"there is no folder of images {images}")
  if kind == OWN:
    return _find_own(path, images)
  module = PUBLISHED[kind]
  if part not in module.PARTS:
    raise unknown(f"part of {kind}", part, module.PARTS)
  root, files = (path.parent, [path.name]) if path.is_file() else (path, module.files(path, part))
  if not files:
    raise InputError(f"{path} holds no table of part {part!r} of {kind}; see `data convert --help`")
  if images is None:
    images = module.images(root, part) if hasattr(module, "images") else root
  return Source(kind, part, root, pathlib.Path(images), files)


def _find_own(path: pathlib.Path, images: pathlib.Path | None) -> Source:
  if path.is_file():
    root = path.parent
    return Source(OWN, "", root, pathlib.Path(images or root), [path.name])
  if (path / "winner").is_dir():
    return Source(OWN, "", path, path, [])
  raise InputError(
    f"{path} is neither a table (.csv, .tsv, .json, .jsonl, .parquet) nor a folder with winner/, "
    "loser/ and captions/"
  )


def plan(source: Source, *, rows: int) -> list[tables.Table]:
  """Cuts a source into pieces of about so many rows, table by table.

  Args:
    source: From `find`.
    rows: See `tables.plan`.

  Returns:
    A `Table` per file, in order.

  Raises:
    InputError: A table is missing, empty or broken, or lacks a column.
  """
  if not source.files:
    return [custom_folders.plan(source.root, rows=rows)]
  columns = _module(source).COLUMNS
  return [tables.plan(source.root, file, columns, rows=rows) for file in source.files]


def read(
  source: Source, piece: tables.Piece, *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """The rows of a piece, see `tables.read`.

  Args:
    source: From `find`.
    piece: From `plan`.
    scratch: See `tables.read`.

  Returns:
    Iterator of (row number, values or what is wrong with the row).
  """
  if not source.files:
    return custom_folders.read(source.root, piece)
  columns = (*_module(source).COLUMNS, *_module(source).OPTIONAL)
  return tables.read(source.root, piece, columns, scratch=scratch)


def drafts(
  source: Source, row: dict, where: str, *, labels: str, temperature: float = 1.0
) -> list[Draft]:
  """The pairs of a raw row.

  Args:
    source: Whose row it is.
    row: Its values.
    where: "FILE:ROW".
    labels: "soft", "votes" or "hard": see the sources' `drafts`; "hard" rounds what is no tie.
    temperature: Of scores in one's own tables.

  Returns:
    `Draft`s, images not read yet.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  if labels == "votes" and not _module(source).VOTES:
    raise no_votes(source.kind)
  if _module(source) is custom_table:
    found = custom_table.drafts(row, where, labels, temperature=temperature)
  else:
    found = _module(source).drafts(row, where, labels)
  if labels == "hard":
    found = [d if d.p0 in (None, 0.5) else d._replace(p0=float(d.p0 > 0.5)) for d in found]
  return found
