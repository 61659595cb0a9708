"""Makes the data set of converted chunks: duplicates, shard names, report, TFDS metadata."""

import itertools
import json
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dmpo_jax.common import paths as common_paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.files import parse_json, reading
from dmpo_jax.data import pair_index, record_writer, tfds_folder
from dmpo_jax.data.convert import chunk_index, moves, paths, report_page
from dmpo_jax.data.convert import report as reports
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.tables import Chunk, Table
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError

RECORDS_AT_A_TIME = 8
BAD_ROWS_ON_PAGE = 50
AGAIN = "run the same command again"
REPEATED_ID = "its id occurred before"


def finish(
  folder: ResumableFolder,
  kind: str,
  tables: list[Table],
  options: Options,
  details: Mapping[str, Any] | None = None,
) -> dict:
  """Makes the data set; can be killed at any point and called again.

  Args:
    folder: The conversion's folder.
    kind: Name of the source.
    tables: Tables of the plan, all chunks of which are converted.
    options: Options of the conversion.
    details: Further JSON values for the report.

  Returns:
    The report.

  Raises:
    InputError: An id occurs twice and `on_bad_row` is "stop", or no pair is left.
    OSError: A file cannot be written.
  """
  chunks = [chunk for table in tables for chunk in table.chunks]
  out, working, count = folder.out, folder.working, len(chunks)
  names = list(options.splits)
  for i in range(count):  # those of other hosts too
    folder.check_made(i, paths.index(working, i))
  dropped_ids, repeated = chunk_index.duplicates(working, count)
  if len(dropped_ids) and options.on_bad_row == "stop":
    raise _repeated_id_error(working, chunks, dropped_ids)
  dropped = dropped_ids
  if options.duplicates == "drop":
    dropped = np.union1d(dropped_ids, repeated)
  counts = Counter()
  for result in folder.results(count):
    counts.update(result["counts"])
  counts["duplicates"] = len(repeated)
  counts["dropped_duplicates"] = len(dropped) - len(dropped_ids)
  counts["dropped_repeated_ids"] = len(dropped_ids)

  shards = _shards(working, names, count, dropped)
  if not any(shards.values()):
    raise InputError(
      f"no pair is left of {counts['rows']} rows (counts: {dict(counts)}); change the options, and "
      "choose another folder or delete this one"
    )
  moves.write(
    working,
    {
      paths.shard(working, chunk, split).name: tfds_folder.file_name(split, i, len(of_split))
      for split, of_split in shards.items()
      for i, (chunk, _) in enumerate(of_split)
    },
  )
  files, sizes = {}, {}
  for split, shards_of_split in shards.items():
    sizes[split] = []
    for i, (chunk, kept) in enumerate(shards_of_split):
      path = out / tfds_folder.file_name(split, i, len(shards_of_split))
      _move(paths.shard(working, chunk, split), path, kept, working)
      sizes[split].append((int(kept.sum()), common_paths.size(path)))
      files[path.name] = {"records": sizes[split][-1][0], "bytes": sizes[split][-1][1]}

  indices = {}
  for i, split in enumerate(names):
    if shards.get(split):
      path = out / pair_index.name(split)
      _write_index(path, working, count, i, dropped)
      indices[split] = pair_index.digest(path)
  _write_bad_rows(out, working, chunks, dropped_ids)
  statistics = reports.Statistics(names)
  for _, entries, kept in chunk_index.read(working, count, dropped):
    statistics.add(entries[kept])
  report = reports.summary(
    kind=kind,
    counts=counts,
    statistics=statistics,
    prompts=chunk_index.count_prompts(working, count, names, dropped),
    options=options,
    files=files,
    indices=indices,
    tables=tables,
  ) | dict(details or {})
  examples = reports.examples(out, files, statistics)
  bad_rows = _first_lines(out / paths.BAD_ROWS, BAD_ROWS_ON_PAGE)
  write_atomically(out / paths.PAGE, report_page.page(report, examples, bad_rows), scratch=working)
  text = json.dumps(report, indent=1) + "\n"
  write_atomically(out / tfds_folder.REPORT, text, scratch=working)
  _write_metadata(out, working, sizes)
  folder.remove_working_folder()
  return report


def _repeated_id_error(
  working: pathlib.Path, chunks: list[Chunk], dropped: np.ndarray
) -> InputError:
  """The error for the first repeated id, which names both rows."""
  row, key = None, None
  for number, entries, kept in chunk_index.read(working, len(chunks), dropped):
    if not kept.all():
      entry = entries[np.flatnonzero(~kept)[0]]
      row, key = f"{chunks[number].file}, row {entry['row']}", entry["id"]
      break
  for number, entries, _ in chunk_index.read(working, len(chunks)):
    same = np.flatnonzero((entries["id"] == key).all(axis=1))
    if len(same):
      earlier = f"{chunks[number].file}, row {entries[same[0]]['row']}"
      break
  return InputError(
    f"{row}: {REPEATED_ID}, in {earlier} ({len(dropped)} such pairs in all); ids must be unique. "
    "--on-bad-row=skip keeps the first pair of each id and lists the others; converted chunks are "
    "not converted again"
  )


def _shards(
  working: pathlib.Path, names: list[str], count: int, dropped: np.ndarray
) -> dict[str, list]:
  """(chunk, which of its records are kept) of each shard that is not empty, by split."""
  shards = {name: [] for name in names}
  for chunk, entries, kept in chunk_index.read(working, count, dropped):
    for i, name in enumerate(names):
      kept_in_split = kept[entries["split"] == i]
      if kept_in_split.any():
        shards[name].append((chunk, kept_in_split))
  return {name: shards_of_split for name, shards_of_split in shards.items() if shards_of_split}


def _move(source: pathlib.Path, to: pathlib.Path, kept: np.ndarray, working: pathlib.Path) -> None:
  """Gives a shard its final name, without the dropped records."""
  if not source.exists() and to.exists():  # an interrupted command did it
    return
  if kept.all():
    common_paths.move(source, to)
    return
  from array_record.python.array_record_module import ArrayRecordReader

  with reading(source, "shard", advice=AGAIN):
    reader = ArrayRecordReader(str(common_paths.local_copy(source)))
  writer = record_writer.RecordWriter(to, working)
  try:
    numbers = np.flatnonzero(kept).tolist()
    for i in range(0, len(numbers), RECORDS_AT_A_TIME):
      with reading(source, "shard", advice=AGAIN):
        records = reader.read(numbers[i : i + RECORDS_AT_A_TIME])
      for record in records:
        writer.write(record)
    writer.finish()
  except BaseException:
    writer.discard()
    raise
  finally:
    reader.close()
  moves.write_fingerprint(working, to)
  source.unlink(missing_ok=True)


def _write_index(
  path: pathlib.Path, working: pathlib.Path, count: int, split: int, dropped: np.ndarray
) -> None:
  """Writes the pair index of a split, chunk by chunk, in the order of the records."""

  def chunks() -> Iterator[np.ndarray]:
    for _, entries, kept in chunk_index.read(working, count, dropped):
      yield pair_index.select(entries[kept & (entries["split"] == split)])

  def write(stream) -> None:
    shape = (sum(map(len, chunks())),)
    descr = np.lib.format.dtype_to_descr(pair_index.DTYPE)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for entries in chunks():
      stream.write(entries.tobytes())

  write_atomically(path, write, scratch=working)


def _write_bad_rows(
  out: pathlib.Path, working: pathlib.Path, chunks: list[Chunk], repeated_ids: np.ndarray
) -> None:
  def write(stream):
    for number, entries, kept in chunk_index.read(working, len(chunks), repeated_ids):
      with paths.bad_rows(working, number).open("rb") as lines:
        shutil.copyfileobj(lines, stream)
      for row in entries["row"][~kept].tolist():
        line = {"file": paths.as_text(chunks[number].file), "row": row, "reason": REPEATED_ID}
        stream.write(json.dumps(line).encode() + b"\n")

  write_atomically(out / paths.BAD_ROWS, write, scratch=working)


def _first_lines(path: pathlib.Path, count: int) -> list[dict]:
  with path.open(encoding="utf-8") as stream:
    lines = itertools.islice(stream, count)
    return [parse_json(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]


def _write_metadata(out: pathlib.Path, working: pathlib.Path, sizes: dict) -> None:
  """Writes TFDS's metadata; dataset_info.json appears last, which completes the data set."""
  with common_paths.scratch_folder() as temporary:
    tfds_folder.write_metadata(temporary, sizes)
    for name in ("features.json", "dataset_info.json"):
      write_atomically(out / name, (temporary / name).read_bytes(), scratch=working)
