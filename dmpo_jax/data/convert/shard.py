"""Converts one chunk of a source to a shard per split, index entries, and counts."""

import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common import paths as common_paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import captions, images, pairs, record_writer, resumable, tfds_folder
from dmpo_jax.data.convert import chunk_index, paths, source_reader
from dmpo_jax.data.convert.chunk_index import LONG_CAPTION, REENCODED, SIZE_MISMATCH, TIE
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.convert.tables import Chunk
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError


class ConvertedPair(NamedTuple):
  """A pair of a row that is kept.

  Attributes:
    pair: The pair.
    tokens: Tokens of its caption.
    flags: Sum of the flags of `chunk_index` that apply.
  """

  pair: pairs.Pair
  tokens: int
  flags: int


def convert_chunk(
  folder: ResumableFolder,
  number: int,
  source: source_reader.Source,
  chunk: Chunk,
  options: Options,
) -> None:
  """Converts a chunk. Its files appear complete, the completion marker last.

  Args:
    folder: The conversion's folder.
    number: Number of the chunk.
    source: Source of the rows.
    chunk: The rows.
    options: Options of the conversion.

  Raises:
    InputError: A row is invalid and `on_bad_row` is "stop", or the table cannot be read.
    OSError: A file cannot be written.
  """
  counts, bad_rows = Counter(), []

  scratch = None if common_paths.is_url(folder.working) else folder.working

  def rows() -> Iterator[tuple[int, list[ConvertedPair]]]:
    file = paths.as_text(chunk.file)
    for row, values in source_reader.read(source, chunk, scratch=scratch):
      counts["rows"] += 1
      try:
        converted = pairs_of_row(source, values, f"{file}:{row}", options, counts)
      except InputError as error:
        if options.on_bad_row == "stop":
          raise InputError(
            f"{source.root / chunk.file}, row {row}: {error} "
            "(--on-bad-row=skip leaves such rows out and lists them)"
          ) from error
        counts["undecodable" if isinstance(error, images.UndecodableError) else "bad"] += 1
        bad_rows.append({"file": file, "row": row, "reason": str(error)})
        continue
      yield row, converted

  write_chunk(folder, number, rows(), options, lambda: {"counts": counts}, bad_rows)


def write_chunk(
  folder: ResumableFolder,
  number: int,
  rows: Iterable[tuple[int, list[ConvertedPair]]],
  options: Options,
  result: Callable[[], dict],
  bad_rows: Sequence[dict] = (),
) -> None:
  """Writes the pairs of a chunk. Its files appear complete, the completion marker last.

  Args:
    folder: The folder of the data set.
    number: Number of the chunk.
    rows: Number of each row, and its pairs.
    options: Its splits decide which shard holds a pair.
    result: Called when the rows are written. Its JSON values are stored beside "shards", the
      number of records by split; `finalize` needs "counts", see `pairs_of_row`.
    bad_rows: Rows that were left out; read when the rows are written.

  Raises:
    OSError: A file cannot be written.
  """
  working = folder.working
  paths.remove_temporary_files(working, number)
  writers, entries = _ShardWriters(working, number), []
  try:
    for row, converted in rows:
      for pair, tokens, flags in converted:
        split = pairs.split_of(pair.prompt_id, options.splits, salt=options.split_seed)
        position = writers.write(split, tfds_folder.serialize(pair))
        number_of_split = list(options.splits).index(split)
        entries.append(
          chunk_index.entry(
            pair, row=row, position=position, tokens=tokens, split=number_of_split, flags=flags
          )
        )
    shards = writers.finish()
  except BaseException:
    writers.discard()
    raise
  array = np.array(entries, chunk_index.DTYPE)
  write_atomically(paths.index(working, number), lambda stream: np.save(stream, array))
  lines = "".join(json.dumps(line) + "\n" for line in bad_rows)
  write_atomically(paths.bad_rows(working, number), lines)
  made = {
    path: resumable.fingerprint(path)
    for path in (paths.index(working, number), paths.bad_rows(working, number))
  }
  made |= {writer.path: writer.fingerprint for writer in writers.writers.values()}
  fingerprints = {str(path.relative_to(folder.out)): made[path] for path in made}
  folder.mark_done(number, {**result(), "shards": shards}, fingerprints)


def pairs_of_row(
  source: source_reader.Source,
  values: dict | InputError,
  where: str,
  options: Options,
  counts: Counter,
) -> list[ConvertedPair]:
  """The pairs of a row that the options keep.

  Args:
    source: Source of the row.
    values: From `source_reader.read`.
    where: "FILE:ROW".
    options: Options of the conversion.
    counts: Counts by reason, to which the row's are added unless it is invalid.

  Returns:
    The pairs, with their images decoded once and in 8-bit RGB.

  Raises:
    InputError: The row is invalid. None of its pairs is kept then.
  """
  if isinstance(values, InputError):
    raise values
  raw_pairs = source_reader.raw_pairs(
    source, values, where, labels=options.labels, temperature=options.score_temperature
  )
  return keep(raw_pairs, options, counts, kind=source.kind, folder=source.images)


def keep(
  raw_pairs: Iterable[RawPair],
  options: Options,
  counts: Counter,
  *,
  kind: str,
  folder: pathlib.Path,
) -> list[ConvertedPair]:
  """The pairs that the options keep.

  Args:
    raw_pairs: The pairs of a row.
    options: Options of the conversion.
    counts: Counts by reason, to which the row's are added unless a pair is invalid.
    kind: Name of the source.
    folder: Folder that paths of images are relative to.

  Returns:
    The pairs, with their images decoded once and in 8-bit RGB.

  Raises:
    InputError: A pair is invalid.
  """
  kept, row_counts, pictures = [], Counter(), {}

  def picture(value: bytes | str) -> images.Picture:
    if value not in pictures:
      pictures[value] = images.load(value, folder)
    return pictures[value]

  for raw in raw_pairs:
    row_counts["pairs"] += 1
    # A byte order mark is no part of a caption: tables are made of files that begin with one.
    raw = raw._replace(prompt=pairs.check_text("prompt", raw.prompt).lstrip("\ufeff"))
    pairs.check_prompt(raw.prompt)
    if raw.p0 is None:
      if options.unlabelled == "stop":
        raise InputError("the row has no label; --unlabelled=drop leaves such rows out")
      row_counts["unlabelled"] += 1
      continue
    tokens = captions.tokens(raw.prompt, options.tokenizer)
    flags = TIE * (raw.p0 == 0.5) + LONG_CAPTION * (tokens > captions.CONTEXT)
    row_counts["ties"] += raw.p0 == 0.5
    row_counts["long_captions"] += tokens > captions.CONTEXT
    if flags & TIE and options.ties == "drop":
      row_counts["dropped_ties"] += 1
      continue
    if flags & LONG_CAPTION and options.long_captions == "drop":
      row_counts["dropped_long_captions"] += 1
      continue
    first, second = picture(raw.image_0), picture(raw.image_1)
    condition = picture(raw.condition).encoded if raw.condition else b""
    if first.size != second.size:
      row_counts["size_mismatch"] += 1
      flags += SIZE_MISMATCH
      if options.size_mismatch == "drop":
        row_counts["dropped_size_mismatch"] += 1
        continue
    for reason in filter(None, (first.reencoded, second.reencoded)):
      row_counts[f"reencoded/{reason}"] += 1
      flags |= REENCODED
    pair = pairs.validate(
      pairs.Pair(
        id=raw.id,
        prompt=raw.prompt,
        image_0=first.encoded,
        image_1=second.encoded,
        p0=raw.p0,
        weight=raw.weight,
        prompt_id=pairs.prompt_key(raw.prompt),
        source=kind,
        size_0=first.size,
        size_1=second.size,
        model_0=raw.model_0,
        model_1=raw.model_1,
        user_id=raw.user_id,
        condition=condition,
        **dict(zip(("seed_0", "seed_1"), raw.seeds or (), strict=False)),
        **dict(zip(("score_0", "score_1"), raw.scores or (), strict=False)),
      )
    )
    kept.append(ConvertedPair(pair, tokens, flags))
  counts.update(row_counts)
  return kept


class _ShardWriters:
  """One shard per split, opened at its first pair."""

  def __init__(self, working: pathlib.Path, chunk: int):
    self.working, self.chunk = working, chunk
    self.writers: dict[str, record_writer.RecordWriter] = {}

  def write(self, split: str, record: bytes) -> int:
    """Appends a record and returns its position in the shard."""
    if split not in self.writers:
      path = paths.shard(self.working, self.chunk, split)
      self.writers[split] = record_writer.RecordWriter(path, self.working)
    self.writers[split].write(record)
    return self.writers[split].count - 1

  def finish(self) -> dict[str, int]:
    """Completes all shards; returns the number of records by split."""
    for writer in self.writers.values():
      writer.finish()
    return {split: writer.count for split, writer in self.writers.items()}

  def discard(self) -> None:
    """Removes the incomplete shards."""
    for writer in self.writers.values():
      writer.discard()
