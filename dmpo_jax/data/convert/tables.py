"""Tables of rows on disk, cut into pieces that can be read alone, in memory that does not grow."""

import contextlib
import hashlib
import pathlib
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from dmpo_jax.common.optional import import_optional
from dmpo_jax.data.convert import text_tables
from dmpo_jax.errors import InputError, unknown

PARQUET_ROWS = 8  # decoded at once: rows of Pick-a-Pic hold two images, of others more
PARQUET_BUFFER = 2**20
HEAVY_GROUP = 2**26  # bytes of a row group from which on its images are read column by column
FOOTER_BYTES = 2**16  # end of a parquet file that stands for its content in fingerprints


class Piece(NamedTuple):
  """A part of a table that is read alone.

  Attributes:
    file: Path relative to the source's folder.
    first: Number of its first row in the file, from 0.
    rows: How many rows it has.
    start: Where it starts: a row group (parquet) or a byte (text).
    groups: How many row groups it has; 0 for text.
  """

  file: str
  first: int
  rows: int
  start: int
  groups: int


class Table(NamedTuple):
  """A table as it was when it was planned.

  Attributes:
    pieces: Its parts, in order; together they are all rows.
    fingerprint: Changes with the file (text: SHA-256 of it; parquet: of its size and footer).
  """

  pieces: list[Piece]
  fingerprint: str


def plan(root: pathlib.Path, file: str, columns: Sequence[str], *, rows: int) -> Table:
  """Cuts a table into pieces of about so many rows.

  Args:
    root: Folder of the source.
    file: Table relative to it: .parquet, .csv, .tsv, .json or .jsonl.
    columns: Names that the table must have (JSON is checked row by row).
    rows: Rows in a piece, at least; parquet is cut between row groups only.

  Returns:
    `Table`.

  Raises:
    InputError: The file is missing, empty, of another kind, broken, or lacks a column.
  """
  path = root / file
  if not path.is_file():
    raise InputError(f"there is no file {path}")
  if not path.stat().st_size:
    raise InputError(f"{path} is empty (0 bytes)")
  if path.suffix == ".parquet":
    found = _plan_parquet(path, file, columns, rows)
  elif path.suffix in text_tables.SUFFIXES:
    cuts, digest = text_tables.plan(path, columns, rows=rows)
    found = Table([Piece(file, first, count, start, 0) for first, count, start in cuts], digest)
  else:
    kinds = [".parquet", *text_tables.SUFFIXES]
    raise unknown("kind of table", path.name, kinds)
  if not found.pieces:
    raise InputError(f"{path} holds no row")
  return found


def read(
  root: pathlib.Path, piece: Piece, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """The rows of a piece, one at a time.

  Args:
    root: Folder of the source.
    piece: Part of a table, from `plan`.
    columns: Columns that are wanted; others are not read where the format allows that.
    scratch: Folder for temporary files (of parquet with large row groups); None is the system's.

  Yields:
    (number of the row in its file from 0, its values by column, or what is wrong with the row).

  Raises:
    InputError: The file cannot be read on.
  """
  path = root / piece.file
  if path.suffix == ".parquet":
    return _read_parquet(path, piece, columns, scratch)
  return text_tables.read(path, first=piece.first, rows=piece.rows, start=piece.start)


@contextlib.contextmanager
def _blaming(path: pathlib.Path, row: int | None = None):
  """Turns what pyarrow raises on damaged files into an error that names the file."""
  arrow = import_optional("pyarrow", extra="data")
  try:
    yield
  except InputError:
    raise
  except (arrow.ArrowException, OSError, ValueError, OverflowError, IndexError) as error:
    where = "" if row is None else f", row {row}"
    raise InputError(f"{path}{where}: no readable parquet, or damaged: {error}") from error


def _open_parquet(path: pathlib.Path):
  parquet = import_optional("pyarrow.parquet", extra="data")
  with _blaming(path):
    # Not mapped, not read ahead: mapped pages and whole row groups would count as memory.
    return parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=PARQUET_BUFFER)


def _plan_parquet(path: pathlib.Path, file: str, columns: Sequence[str], rows: int) -> Table:
  with _open_parquet(path) as table, _blaming(path):
    text_tables.check_columns(path, columns, table.schema_arrow.names)
    groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
  pieces, first, start = [], 0, 0
  count = 0
  for group, size in enumerate(groups):
    count += size
    if count >= rows or group == len(groups) - 1:
      pieces.append(Piece(file, first, count, start, group + 1 - start))
      first, start, count = first + count, group + 1, 0
  with path.open("rb") as stream:
    size = stream.seek(0, 2)
    stream.seek(max(0, size - FOOTER_BYTES))
    digest = hashlib.sha256(size.to_bytes(8, "little") + stream.read()).hexdigest()
  return Table([p for p in pieces if p.rows], digest)


def _read_parquet(
  path: pathlib.Path, piece: Piece, columns: Sequence[str], scratch: pathlib.Path | None
):
  number = piece.first
  with _open_parquet(path) as table:
    with _blaming(path):
      names = [name for name in columns if name in table.schema_arrow.names]
    for group in range(piece.start, piece.start + piece.groups):
      with _blaming(path):
        heavy = _heavy(table, group, names)
      with contextlib.ExitStack() as stack:
        # A parquet writer may put all values of a column into one page, which can only be read
        # whole, three times its size. So heavy columns are read one after the other and wait on
        # disk; the last one is joined to them as it is read.
        spools = []
        for name in heavy[:-1]:
          spool = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
          _spool(_group_rows(path, table, group, [name], number), spool)
          spools.append(spool)
        rest = [name for name in names if name not in heavy[:-1]]
        for row in _group_rows(path, table, group, rest, number):
          parts = [row, *(pickle.load(spool) for spool in spools)]
          errors = [part for part in parts if isinstance(part, InputError)]
          yield number, errors[0] if errors else {k: v for part in parts for k, v in part.items()}
          number += 1
  if number != piece.first + piece.rows:
    raise InputError(f"{path} ended at row {number}, {piece.first + piece.rows} were announced")


def _spool(rows: Iterator[dict | InputError], spool: IO[bytes]) -> None:
  """Writes rows to a temporary file, to be read from its beginning."""
  for row in rows:
    try:
      pickle.dump(row, spool)
    except OSError as error:
      advice = f"cannot write a temporary file ({error.strerror}); free space, then run the "
      advice += "same command again to resume"
      raise OSError(error.errno, advice) from error
  spool.seek(0)


def _heavy(table, group: int, names: list[str]) -> list[str]:
  """Columns of a row group that are too large to be read side by side."""
  types = import_optional("pyarrow.types", extra="data")
  # The sizes of single columns are not asked for: on a damaged file that ends the process.
  if table.metadata.row_group(group).total_byte_size <= HEAVY_GROUP:
    return []
  kinds = types.is_binary, types.is_large_binary, types.is_struct
  return [n for n in names if any(kind(table.schema_arrow.field(n).type) for kind in kinds)]


def _group_rows(path: pathlib.Path, table, group: int, names: list[str], number: int):
  """Rows of a row group with these columns: values by name, or what is wrong."""
  arrow = import_optional("pyarrow", extra="data")
  with _blaming(path, number):
    batches = table.iter_batches(
      batch_size=PARQUET_ROWS, row_groups=[group], columns=names, use_threads=False
    )
  while True:
    with _blaming(path, number):
      batch = next(batches, None)
    if batch is None:
      break
    for row in range(batch.num_rows):
      with _blaming(path, number):
        values = _row(batch, row)
      yield values
      number += 1
    del batch
  del batches
  arrow.default_memory_pool().release_unused()


def _row(batch, row: int) -> dict | InputError:
  values = {}
  for name in batch.schema.names:
    try:
      values[name] = batch.column(name)[row].as_py()
    except UnicodeDecodeError as error:
      return InputError(f"{name} is not valid UTF-8: {error}")
    except (ValueError, OverflowError, ImportError) as error:  # dates that Python cannot hold
      return InputError(f"{name} cannot be read: {error}")
  return values
