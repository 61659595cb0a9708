"""One piece of a source becomes one shard per split, an index of its pairs, and counts."""

import errno
import hashlib
import json
import os
import pathlib
from collections import Counter

import numpy as np

from dmpo_jax.common.atomic_files import temporary_name, write_atomically, write_error
from dmpo_jax.data import captions, images, pairs, tfds_folder
from dmpo_jax.data.convert import sources
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.tables import Piece
from dmpo_jax.errors import InputError

# What is kept of each written pair until the whole set is there: enough to find duplicates and to
# count, 92 bytes.
INDEX = np.dtype(
  [
    ("id", "<u8", 2),
    ("content", "<u8", 2),
    ("prompt", "<u8"),
    ("row", "<u8"),
    ("place", "<u4"),  # in its shard
    ("tokens", "<u4"),
    ("p0", "<f4"),
    ("weight", "<f4"),
    ("size", "<u2", 4),  # height and width of image_0, of image_1
    ("split", "u1"),
    ("flags", "u1"),
  ]
)
TIE, LONG, MISMATCH, CHANGED = 1, 2, 4, 8


def paths(folder: pathlib.Path, number: int) -> dict[str, pathlib.Path]:
  """Where a piece's results lie: its record of what was done, its index, its list of bad rows."""
  units = folder / "units"
  return {
    "done": units / f"{number:06d}.json",
    "index": units / f"{number:06d}.npy",
    "bad": units / f"{number:06d}.bad.jsonl",
  }


def shard_path(folder: pathlib.Path, number: int, split: str) -> pathlib.Path:
  """Where a piece's shard lies until the whole set is there."""
  return folder / "shards" / f"{number:06d}-{split}.array_record"


def convert_piece(
  folder: pathlib.Path, number: int, source: sources.Source, piece: Piece, options: Options
) -> None:
  """Converts a piece: all its files appear whole, the record of what was done last.

  Args:
    folder: The conversion's working folder.
    number: Of the piece.
    source: Where its rows come from.
    piece: Which rows.
    options: How.

  Raises:
    InputError: A row cannot be used and `on_bad_row` is "stop", or the table cannot be read.
    OSError: A file cannot be written (no space).
  """
  for path in (folder / "shards").glob(f"{number:06d}-*.tmp"):
    path.unlink(missing_ok=True)  # of a process that was killed
  writers = _Writers(folder, number)
  counts, bad, index = Counter(), [], []
  try:
    for row, values in sources.read(source, piece, scratch=folder / "shards"):
      counts["rows"] += 1
      where = f"{piece.file}:{row}"
      try:
        found = _pairs(source, values, where, options, counts)
      except InputError as error:
        if options.on_bad_row == "stop":
          raise InputError(
            f"{source.root / piece.file}, row {row}: {error}\n"
            "  (--on-bad-row=skip leaves such rows out and lists them; what is written stays)"
          ) from error
        kind = "undecodable" if isinstance(error, images.UndecodableError) else "bad"
        counts[kind] += 1
        bad.append({"file": piece.file, "row": row, "reason": str(error)})
        continue
      for pair, entry in found:
        split = pairs.split_of(pair.prompt_id, options.splits, salt=options.split_salt)
        place = writers.write(split, tfds_folder.serialize(pair))
        index.append(
          (*entry[:3], row, place, *entry[3:7], list(options.splits).index(split), entry[7])
        )
    shards = writers.finish()
  except BaseException:
    writers.discard()
    raise
  to = paths(folder, number)
  units = folder / "units"
  write_atomically(
    to["index"], lambda stream: np.save(stream, np.array(index, INDEX)), scratch=units
  )
  lines = "".join(json.dumps(line) + "\n" for line in bad)
  write_atomically(to["bad"], lines, scratch=units)
  done = json.dumps({"counts": counts, "shards": shards}, sort_keys=True)
  write_atomically(to["done"], done, scratch=units)


def _pairs(
  source: sources.Source, values: dict | InputError, where: str, options: Options, counts: Counter
) -> list:
  """(pair, its entry in the index) of a raw row's pairs that stay; all of them or an error."""
  if isinstance(values, InputError):
    raise values
  temperature = options.score_temperature
  drafts = sources.drafts(source, values, where, labels=options.labels, temperature=temperature)
  found, row, read = [], Counter(), {}

  def picture(value):
    if value not in read:
      read[value] = images.load(value, source.images)
    return read[value]

  for draft in drafts:
    row["pairs"] += 1
    pairs.check_prompt(pairs.check_text("prompt", draft.prompt))
    if draft.p0 is None:
      if options.unlabelled == "stop":
        raise InputError("the row has no label; --unlabelled=drop leaves such rows out")
      row["unlabelled"] += 1
      continue
    length = captions.tokens(draft.prompt, options.tokenizer)
    flags = TIE * (draft.p0 == 0.5) + LONG * (length > captions.CONTEXT)
    row["ties"] += draft.p0 == 0.5
    row["long_captions"] += length > captions.CONTEXT
    if flags & TIE and options.ties == "drop":
      row["dropped_ties"] += 1
      continue
    if flags & LONG and options.long_captions == "drop":
      row["dropped_long_captions"] += 1
      continue
    first, second = picture(draft.image_0), picture(draft.image_1)
    condition = picture(draft.condition).encoded if draft.condition else b""
    if first.size != second.size:
      row["size_mismatch"] += 1
      flags += MISMATCH
      if options.size_mismatch == "drop":
        row["dropped_size_mismatch"] += 1
        continue
    for change in filter(None, (first.changed, second.changed)):
      row[f"stored_anew/{change}"] += 1
      flags |= CHANGED
    pair = pairs.validate(
      pairs.Pair(
        id=draft.id,
        prompt=draft.prompt,
        image_0=first.encoded,
        image_1=second.encoded,
        p0=draft.p0,
        weight=draft.weight,
        prompt_id=pairs.prompt_key(draft.prompt),
        source=source.kind,
        size_0=first.size,
        size_1=second.size,
        model_0=draft.model_0,
        model_1=draft.model_1,
        user_id=draft.user_id,
        condition=condition,
      )
    )
    found.append((pair, _entry(pair, length, flags)))
  counts.update(row)
  return found


def _entry(pair: pairs.Pair, length: int, flags: int) -> tuple:
  """id, content, prompt, tokens, p0, weight, size, flags."""
  content = hashlib.sha256()
  for part in (
    *(pair.prompt.encode(), pair.image_0, pair.image_1, pair.condition, pair.user_id.encode()),
    repr(pair.p0).encode(),
  ):
    content.update(len(part).to_bytes(8, "little") + part)
  return (
    _two_words(hashlib.sha256(pair.id.encode()).digest()),
    _two_words(content.digest()),
    int(pair.prompt_id[:16], 16),
    length,
    pair.p0,
    pair.weight,
    (*pair.size_0, *pair.size_1),
    flags,
  )


def _two_words(digest: bytes) -> tuple[int, int]:
  return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


class _Writers:
  """A shard per split, opened when its first pair comes, named when it is whole."""

  def __init__(self, folder: pathlib.Path, number: int):
    self.folder, self.number = folder, number
    self.open, self.count = {}, Counter()

  def write(self, split: str, record: bytes) -> int:
    """Appends a record and returns its place in the shard."""
    if split not in self.open:
      path = shard_path(self.folder, self.number, split)
      self.open[split] = RecordWriter(path, path.parent)
    self.open[split].write(record)
    self.count[split] += 1
    return self.count[split] - 1

  def finish(self) -> dict[str, int]:
    """Closes and names all shards; returns how many records each split has."""
    for writer in self.open.values():
      writer.finish()
    return dict(self.count)

  def discard(self) -> None:
    """Removes what is not whole."""
    for writer in self.open.values():
      writer.discard()


class RecordWriter:
  """An ArrayRecord file that appears under its name when it is whole, or not at all.

  Args:
    path: Its name.
    scratch: Folder on the same disk where it lies until it is whole.

  Raises:
    OSError: It cannot be written; the message names the file, and lack of space if that is why.
  """

  def __init__(self, path: pathlib.Path, scratch: pathlib.Path):
    from array_record.python.array_record_module import ArrayRecordWriter

    self.path, self.part = path, scratch / temporary_name(path)
    self.count = 0
    self.writer = self._try(ArrayRecordWriter, str(self.part), tfds_folder.WRITER_OPTIONS)

  def write(self, record: bytes) -> None:
    """Appends a record."""
    self._try(self.writer.write, record)
    self.count += 1

  def finish(self) -> None:
    """Closes the file, checks that all records are in it, and gives it its name."""
    self._try(self.writer.close)
    if tfds_folder.count_records(self.part) != self.count:
      raise OSError(
        errno.EIO, "the file that was written does not hold all records", str(self.path)
      )
    with self.part.open("rb") as stream:
      os.fsync(stream.fileno())
    self.part.replace(self.path)

  def discard(self) -> None:
    """Removes the unfinished file."""
    self.part.unlink(missing_ok=True)

  def _try(self, call, *arguments):
    try:
      return call(*arguments)
    except RuntimeError as error:  # what ArrayRecord makes of a failed system call
      number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
      raise write_error(self.path, str(error), number) from error
