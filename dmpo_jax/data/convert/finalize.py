"""The end of a conversion: duplicates, final names of shards, report, TFDS's metadata."""

import json
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator

import numpy as np

from dmpo_jax.common.atomic_files import temporary_name, write_atomically, write_error
from dmpo_jax.data import pair_index, tfds_folder
from dmpo_jax.data.convert import report as conversion_report
from dmpo_jax.data.convert import report_page
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.shard import (
  RecordWriter,
  paths,
  shard_path,
)
from dmpo_jax.data.convert.tables import Piece
from dmpo_jax.errors import InputError

PAIRS_AT_A_TIME = 1_000_000  # whose index is sorted in memory: 40 MB
COPY_AT_A_TIME = 8
BAD_ROWS = "bad_rows.jsonl"


def finish(
  out: pathlib.Path, folder: pathlib.Path, kind: str, pieces: list[Piece], options: Options
) -> dict:
  """Makes the data set of converted pieces; can be killed and done again.

  Args:
    out: Folder of the data set.
    folder: The conversion's working folder.
    kind: Of the source.
    pieces: The plan's pieces, all converted.
    options: How.

  Returns:
    The report.

  Raises:
    InputError: An id occurs twice and `on_bad_row` is "stop", or nothing is left.
    OSError: A file cannot be written.
  """
  names = list(options.splits)
  dropped_ids, repeated = _duplicates(folder, len(pieces))
  if len(dropped_ids) and options.on_bad_row == "stop":
    raise InputError(_first_repeated_id(folder, pieces, dropped_ids))
  dropped = dropped_ids
  if options.duplicates == "drop":
    dropped = np.union1d(dropped_ids, repeated)
  counts = Counter()
  for number in range(len(pieces)):
    counts.update(json.loads(paths(folder, number)["done"].read_text())["counts"])
  counts["duplicates"] = len(repeated)
  counts["dropped_duplicates"] = len(dropped) - len(dropped_ids)
  counts["dropped_repeated_ids"] = len(dropped_ids)

  shards = _shards(folder, names, len(pieces), dropped)
  if not any(shards.values()):
    raise InputError(
      f"no pair is left of {counts['rows']} rows (counts: {dict(counts)}); change the options, and "
      "choose another folder or delete this one"
    )
  files, sizes = {}, {}
  for split, found in shards.items():
    sizes[split] = []
    for place, (number, keep) in enumerate(found):
      path = out / tfds_folder.file_name(split, place, len(found))
      _move(shard_path(folder, number, split), path, keep, folder)
      sizes[split].append((int(keep.sum()), path.stat().st_size))
      files[path.name] = {"records": sizes[split][-1][0], "bytes": sizes[split][-1][1]}

  for place, split in enumerate(names):
    if shards.get(split):
      _write_index(out / pair_index.name(split), folder, len(pieces), place, dropped)
  _write_bad_rows(out, folder, pieces, dropped_ids)
  statistics = conversion_report.Statistics(names)
  for _, entries, kept in _entries(folder, len(pieces), dropped):
    statistics.add(entries[kept])
  report = conversion_report.summary(
    kind=kind,
    counts=counts,
    statistics=statistics,
    prompts=_prompts(folder, len(pieces), names, dropped),
    options=options,
    files=files,
  )
  examples = conversion_report.examples(out, files, statistics)
  bad = _head(out / BAD_ROWS, 50)
  page = report_page.page(report, examples, bad)
  write_atomically(out / "report.html", page, scratch=folder)
  text = json.dumps(report, indent=1) + "\n"
  write_atomically(out / tfds_folder.REPORT, text, scratch=folder)
  _write_metadata(out, folder, sizes)
  clean(folder)
  return report


def clean(folder: pathlib.Path) -> None:
  """Removes the working folder of a finished conversion."""
  shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: pathlib.Path, count: int, dropped: np.ndarray) -> Iterator[tuple]:
  """(piece, its index, which entries stay) of every piece; `dropped` are sorted global places."""
  base = 0
  for number in range(count):
    entries = np.load(paths(folder, number)["index"])
    kept = np.ones(len(entries), bool)
    low, high = np.searchsorted(dropped, [base, base + len(entries)])
    kept[dropped[low:high] - base] = False
    yield number, entries, kept
    base += len(entries)


def _duplicates(folder: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Global places of pairs whose id, and of others whose content, occurred before.

  The set is gone through in slices of the hash, so that a slice's index fits in memory.
  """
  none = np.zeros(0, np.int64)
  total = sum(len(e) for _, e, _ in _entries(folder, count, none))
  slices = max(1, -(-total // PAIRS_AT_A_TIME))
  ids = _repeated(folder, count, "id", slices, none)
  return ids, _repeated(folder, count, "content", slices, ids)


def _repeated(
  folder: pathlib.Path, count: int, field: str, slices: int, without: np.ndarray
) -> np.ndarray:
  found = []
  for part in range(slices):
    keys, places, base = [], [], 0
    for _, entries, kept in _entries(folder, count, without):
      mine = kept & (entries[field][:, 0] % slices == part)
      keys.append(entries[field][mine])
      places.append(base + np.flatnonzero(mine))
      base += len(entries)
    key, place = np.concatenate(keys), np.concatenate(places)
    order = np.lexsort((place, key[:, 1], key[:, 0]))
    same = (key[order][1:] == key[order][:-1]).all(axis=1)
    found.append(place[order][1:][same])
  return np.sort(np.concatenate(found))


def _prompts(
  folder: pathlib.Path, count: int, names: list[str], dropped: np.ndarray
) -> dict[str, int]:
  """Different prompts of each split."""
  total = sum(len(e) for _, e, _ in _entries(folder, count, dropped))
  slices = max(1, -(-total // PAIRS_AT_A_TIME))
  found = Counter()
  for part in range(slices):
    keys = []
    for _, entries, kept in _entries(folder, count, dropped):
      mine = kept & (entries["prompt"] % slices == part)
      keys.append(np.stack([entries["split"][mine], entries["prompt"][mine]], axis=1))
    different = np.unique(np.concatenate(keys), axis=0)
    found.update(names[i] for i in different[:, 0].tolist())
  return {name: found[name] for name in names}


def _first_repeated_id(folder: pathlib.Path, pieces: list[Piece], dropped: np.ndarray) -> str:
  """Words for the first repeated id: where it is, and where it was before."""
  none = np.zeros(0, np.int64)
  where, key = None, None
  for number, entries, kept in _entries(folder, len(pieces), dropped):
    if not kept.all():
      entry = entries[np.flatnonzero(~kept)[0]]
      where, key = f"{pieces[number].file}, row {entry['row']}", entry["id"]
      break
  for number, entries, _ in _entries(folder, len(pieces), none):
    same = np.flatnonzero((entries["id"] == key).all(axis=1))
    if len(same):
      before = f"{pieces[number].file}, row {entries[same[0]]['row']}"
      break
  return (
    f"{where}: its id occurred before, in {before} ({len(dropped)} such pairs in all); ids must be "
    "unique. --on-bad-row=skip keeps the first of each and lists the others; nothing that is "
    "converted is done again"
  )


def _shards(
  folder: pathlib.Path, names: list[str], count: int, dropped: np.ndarray
) -> dict[str, list]:
  """By split, (piece, which of its records stay) of each shard that is not empty."""
  shards = {name: [] for name in names}
  for number, entries, kept in _entries(folder, count, dropped):
    for i, name in enumerate(names):
      keep = kept[entries["split"] == i]
      if keep.any():
        shards[name].append((number, keep))
  return {name: found for name, found in shards.items() if found}


def _move(source: pathlib.Path, to: pathlib.Path, keep: np.ndarray, folder: pathlib.Path) -> None:
  """Gives a shard its final name, without the records that do not stay."""
  if to.exists():
    source.unlink(missing_ok=True)
    return
  if keep.all():
    try:
      source.rename(to)
    except FileNotFoundError:
      if not to.exists():  # another host may have been quicker
        raise
    return
  from array_record.python.array_record_module import ArrayRecordReader

  reader, writer = ArrayRecordReader(str(source)), RecordWriter(to, folder)
  try:
    stay = np.flatnonzero(keep).tolist()
    for i in range(0, len(stay), COPY_AT_A_TIME):
      for record in reader.read(stay[i : i + COPY_AT_A_TIME]):
        writer.write(record)
    writer.finish()
  except BaseException:
    writer.discard()
    raise
  finally:
    reader.close()
  source.unlink(missing_ok=True)


def _write_index(
  path: pathlib.Path, folder: pathlib.Path, count: int, split: int, dropped: np.ndarray
) -> None:
  """Writes the index of a split, its pairs in the order of the records, piece by piece."""

  def mine() -> Iterator[np.ndarray]:
    for _, entries, kept in _entries(folder, count, dropped):
      yield pair_index.select(entries[kept & (entries["split"] == split)])

  def write(stream) -> None:
    shape = (sum(map(len, mine())),)
    descr = np.lib.format.dtype_to_descr(pair_index.DTYPE)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for part in mine():
      stream.write(part.tobytes())

  write_atomically(path, write, scratch=folder)


def _write_bad_rows(
  out: pathlib.Path, folder: pathlib.Path, pieces: list[Piece], repeated: np.ndarray
) -> None:
  def write(stream):
    for number, entries, kept in _entries(folder, len(pieces), repeated):
      with paths(folder, number)["bad"].open("rb") as part:
        shutil.copyfileobj(part, stream)
      for row in entries["row"][~kept].tolist():
        line = {"file": pieces[number].file, "row": row, "reason": "its id occurred before"}
        stream.write(json.dumps(line).encode() + b"\n")

  write_atomically(out / BAD_ROWS, write, scratch=folder)


def _head(path: pathlib.Path, count: int) -> list[dict]:
  with path.open(encoding="utf-8") as stream:
    return [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]


def _write_metadata(out: pathlib.Path, folder: pathlib.Path, sizes: dict) -> None:
  """dataset_info.json comes last: with it the data set is there."""
  part = folder / temporary_name(out)
  part.mkdir(exist_ok=True)
  try:
    tfds_folder.write_metadata(part, sizes)
    for name in ("features.json", "dataset_info.json"):
      (part / name).replace(out / name)
  except OSError as error:
    raise write_error(out, error.strerror or str(error), error.errno) from error
