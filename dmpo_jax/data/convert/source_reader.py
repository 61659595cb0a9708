"""A source on disk: its tables, their rows, and the pairs of a row."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from dmpo_jax.data.convert import tables
from dmpo_jax.data.convert.sources import SOURCES, SourceModule
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.pairs import p0_of_scores
from dmpo_jax.errors import InputError, unknown


class Source(NamedTuple):
  """A data set on disk. Worker processes receive it, so it holds no module.

  Attributes:
    kind: A name of `SOURCES`.
    split: Split of the published data set ("train"); "" for `custom`.
    root: Folder of the tables.
    images: Folder that paths of images are relative to.
    files: Tables relative to `root`.
  """

  kind: str
  split: str
  root: pathlib.Path
  images: pathlib.Path
  files: list[str]

  @property
  def module(self) -> SourceModule:
    """The module that reads the rows."""
    return SOURCES[self.kind]


def find(
  kind: str,
  path: pathlib.Path,
  *,
  split: str | None = None,
  images: pathlib.Path | None = None,
) -> Source:
  """Finds a data set on disk.

  Args:
    kind: A name of `SOURCES`.
    path: Folder of the data set, or one table.
    split: Split of the published data set; None: the module's first one.
    images: Folder that paths of images are relative to; None: the module's.

  Returns:
    `Source`.

  Raises:
    InputError: The kind or the split is unknown, or there is no such file.
  """
  if kind not in SOURCES:
    raise unknown("source", kind, SOURCES)
  module, path = SOURCES[kind], pathlib.Path(path)
  if not path.exists():
    raise InputError(f"there is no file or folder {path}")
  if images is not None and not pathlib.Path(images).is_dir():
    raise InputError(f"there is no folder of images {images}")
  if split is None:
    split = module.SPLITS[0] if module.SPLITS else ""
  elif split not in module.SPLITS:
    raise unknown(f"split of {kind}", split, module.SPLITS)
  root, files = (path.parent, [path.name]) if path.is_file() else (path, module.files(path, split))
  if not files:
    raise InputError(
      f"{path} has no {module.FILES.format(split=split)}; see `dmpo-jax data convert --help`"
    )
  return Source(kind, split, root, pathlib.Path(images or module.images(root, split)), files)


def plan(source: Source, *, rows: int) -> list[tables.Table]:
  """Divides the tables of a source into chunks.

  Args:
    source: From `find`.
    rows: Rows of a chunk, see `tables.plan`.

  Returns:
    A `Table` per file, in order.

  Raises:
    InputError: A table is missing, empty or damaged, or lacks a column.
  """
  module = source.module
  try:
    return [
      tables.plan(source.root, file, module.COLUMNS, optional=module.OPTIONAL, rows=rows)
      for file in source.files
    ]
  except tables.MissingColumnsError as error:
    forms = [form for column, form in module.OTHER_FORMS.items() if column in error.present]
    if not forms:
      raise
    raise InputError(f"{error}; {forms[0]}") from error


def read(
  source: Source, chunk: tables.Chunk, *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk, see `tables.read`.

  Args:
    source: From `find`.
    chunk: From `plan`.
    scratch: Folder for temporary files, see `tables.read`.

  Returns:
    Iterator of (row number, values by column or the row's error).
  """
  columns = (*source.module.COLUMNS, *source.module.OPTIONAL)
  return tables.read(source.root, chunk, columns, scratch=scratch)


def raw_pairs(
  source: Source, row: dict, where: str, *, labels: str, temperature: float = 1.0
) -> list[RawPair]:
  """The pairs of a row, their images not read yet.

  Args:
    source: The row's source.
    row: Values by column.
    where: "FILE:ROW".
    labels: "soft", "votes" or "hard", see `SourceModule.raw_pairs`. "hard" rounds p0 to 0 or 1,
      except in ties.
    temperature: Turns scores into probabilities, see `p0_of_scores`.

  Returns:
    One pair or more; p0 is None where the row has neither label nor scores.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  if labels == "votes" and not source.module.VOTES:
    raise InputError(f"{source.kind} has no votes; use --labels=soft or --labels=hard")
  pairs = [
    pair
    if pair.scores is None or pair.p0 is not None
    else pair._replace(p0=p0_of_scores(*pair.scores, temperature=temperature))
    for pair in source.module.raw_pairs(row, where, labels)
  ]
  if labels == "hard":
    pairs = [p if p.p0 in (None, 0.5) else p._replace(p0=float(p.p0 > 0.5)) for p in pairs]
  return pairs
