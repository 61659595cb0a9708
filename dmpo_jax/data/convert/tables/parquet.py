"""Parquet files, read in chunks of row groups in bounded memory."""

import contextlib
import hashlib
import pathlib
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from dmpo_jax.common.atomic_files import write_error
from dmpo_jax.common.files import reading, reason
from dmpo_jax.common.optional import import_optional
from dmpo_jax.data.convert.tables.chunk import Chunk, Table, check_columns
from dmpo_jax.errors import InputError

ROWS_AT_A_TIME = 8  # decoded together; a row of Pick-a-Pic holds two images
BUFFER_BYTES = 2**20
HEAVY_GROUP = 2**26  # bytes; images of a larger row group are read column by column
FOOTER_BYTES = 2**16  # end of a parquet file that its fingerprint covers


def plan(
  root: pathlib.Path, file: str, columns: Sequence[str], *, optional: Sequence[str], rows: int
) -> Table:
  """Divides a parquet file into chunks of whole row groups; see `tables.plan`."""
  path = root / file
  with _open(path) as table, _naming(path):
    names = table.schema_arrow.names
    check_columns(path, columns, names)
    if repeated := [name for name in (*columns, *optional) if names.count(name) > 1]:
      raise InputError(f"{path} has two columns {repeated[0]!r}; rename one of them")
    groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
  chunks, first, start = [], 0, 0
  count = 0
  for group, size in enumerate(groups):
    count += size
    if count >= rows or group == len(groups) - 1:
      chunks.append(Chunk(file, first, count, start, group + 1 - start))
      first, start, count = first + count, group + 1, 0
  with path.open("rb") as stream:
    size = stream.seek(0, 2)
    stream.seek(max(0, size - FOOTER_BYTES))
    digest = hashlib.sha256(size.to_bytes(8, "little") + stream.read()).hexdigest()
  not_read = tuple(name for name in names if name not in {*columns, *optional})
  return Table([chunk for chunk in chunks if chunk.rows], digest, not_read)


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk; see `tables.read`."""
  path, number = root / chunk.file, chunk.first
  with _open(path) as table:
    with _naming(path):
      names = [name for name in columns if name in table.schema_arrow.names]
    for group in range(chunk.start, chunk.start + chunk.groups):
      with _naming(path):
        heavy = _heavy(table, group, names)
      with contextlib.ExitStack() as stack:
        # A parquet writer may put all values of a column into one page, which can only be read
        # whole, three times its size. So heavy columns are read one after the other and wait on
        # disk; the last one is joined to them as it is read.
        spools = []
        for name in heavy[:-1]:
          spool = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
          _spool(_group_rows(path, table, group, [name], number), spool, scratch)
          spools.append(spool)
        rest = [name for name in names if name not in heavy[:-1]]
        for row in _group_rows(path, table, group, rest, number):
          columns_of_row = [row, *(pickle.load(spool) for spool in spools)]
          errors = [values for values in columns_of_row if isinstance(values, InputError)]
          yield (
            number,
            errors[0]
            if errors
            else {name: value for values in columns_of_row for name, value in values.items()},
          )
          number += 1
  if number != chunk.first + chunk.rows:
    raise InputError(f"{path} ended at row {number}, {chunk.first + chunk.rows} were announced")


@contextlib.contextmanager
def _naming(path: pathlib.Path, row: int | None = None):
  """Turns errors of pyarrow on damaged files into an InputError that names file and row."""
  import_optional("pyarrow", extra="data")
  where = f"{path}" if row is None else f"{path}, row {row}"
  try:
    with reading(where, "parquet file"):
      yield
  except OSError as error:  # pyarrow's errors for damaged files may have a number of the system
    if isinstance(error, PermissionError | FileNotFoundError):
      raise
    raise InputError(f"{where} is a damaged parquet file: {reason(error)}") from error


def _open(path: pathlib.Path):
  parquet = import_optional("pyarrow.parquet", extra="data")
  with _naming(path):
    # Not mapped, not read ahead: mapped pages and whole row groups would count as memory.
    return parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=BUFFER_BYTES)


def _spool(
  rows: Iterator[dict | InputError], spool: IO[bytes], folder: pathlib.Path | None
) -> None:
  """Writes rows to a temporary file, to be read from its beginning."""
  for row in rows:
    try:
      pickle.dump(row, spool)
    except OSError as error:
      folder = pathlib.Path(folder or tempfile.gettempdir())
      raise write_error(folder, f"a temporary file: {error.strerror}", error.errno) from error
  spool.seek(0)


def _heavy(table, group: int, names: list[str]) -> list[str]:
  """Columns of a row group that are too large to be read together."""
  types = import_optional("pyarrow.types", extra="data")
  # The size of a single column must not be read: on a damaged file that ends the process.
  if table.metadata.row_group(group).total_byte_size <= HEAVY_GROUP:
    return []
  kinds = types.is_binary, types.is_large_binary, types.is_struct
  return [n for n in names if any(kind(table.schema_arrow.field(n).type) for kind in kinds)]


def _group_rows(path: pathlib.Path, table, group: int, names: list[str], number: int):
  """Rows of a row group with these columns: values by name, or the row's error."""
  arrow = import_optional("pyarrow", extra="data")
  with _naming(path, number):
    batches = table.iter_batches(
      batch_size=ROWS_AT_A_TIME, row_groups=[group], columns=names, use_threads=False
    )
  while True:
    with _naming(path, number):
      batch = next(batches, None)
    if batch is None:
      break
    for row in range(batch.num_rows):
      with _naming(path, number):
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
