"""One shard of an encoding: pairs to views, views to moments, captions to embeddings, to files."""

import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import crops
from dmpo_jax.data.latents import records as encoded
from dmpo_jax.data.latents import rounding
from dmpo_jax.data.mixture import Folder
from dmpo_jax.data.tfds_folder import RecordWriter
from dmpo_jax.errors import InputError


class LatentEncoders(NamedTuple):
  """The frozen networks of a pipeline as functions of arrays.

  Attributes:
    fingerprint: Digests of networks and tokenizers, JSON values by name.
    tokenize: captions -> (token ids by name, int32 `[N, L]`; how many captions were cut).
    latents: uint8 `[2 pairs, H, W, C]` -> float32 `[2 pairs, 2, h, w, Z]`, means and log variances;
      the result may be an array that is still being computed.
    text: token ids by name `[captions, L]` -> float32 text embeddings by name,
      `[captions, ...]`.
    pairs: How many pairs `latents` takes at a time.
    captions: How many captions `text` takes at a time.
    channels: Of the images.
  """

  fingerprint: dict[str, Any]
  tokenize: Callable[[Sequence[str]], tuple[dict[str, np.ndarray], int]]
  latents: Callable[[np.ndarray], Any]
  text: Callable[[dict[str, np.ndarray]], dict[str, Any]]
  pairs: int
  captions: int
  channels: int


class Job(NamedTuple):
  """What all shards of an encoding share.

  Attributes:
    folder: The pairs.
    out: Where finished files lie.
    working: Where unfinished files and records of what is done lie.
    encoders: The networks.
    options: `encode.Options`.
    count: Shards.
  """

  folder: Folder
  out: pathlib.Path
  working: pathlib.Path
  encoders: LatentEncoders
  options: Any
  count: int

  def rows(self, number: int) -> range:
    """The pairs of a shard."""
    each = self.options.pairs_per_shard
    return range(number * each, min((number + 1) * each, len(self.folder)))


class _View(NamedTuple):
  """A view of a pair before it is encoded."""

  pixels: tuple[np.ndarray, np.ndarray]
  prompt: str
  row: int
  number: int
  geometry: tuple[int, ...]


def done_path(working: pathlib.Path, number: int) -> pathlib.Path:
  """Where it is written that a shard is done, and what was found in it."""
  return working / f"{number:06d}.json"


def encode_shard(job: Job, number: int, advance: Callable[[int], None]) -> None:
  """Encodes a shard: its files appear whole, the record of what was done last.

  Args:
    job: What all shards share.
    number: Of the shard.
    advance: Is called with the number of pairs of each batch that is done.

  Raises:
    InputError: A record is damaged, or a number is not finite or too large for the dtype.
    OSError: A file cannot be written.
  """
  options = job.options
  names = {k: encoded.file_name(k, options.split, number, job.count) for k in encoded.KINDS}
  captions, statistics, layout = {"": 0}, {}, {"captions": []}
  for name in names.values():
    for path in job.working.glob(f"{name}.*.tmp"):
      path.unlink(missing_ok=True)  # of a process that was killed
  writers = [RecordWriter(job.out / names["pairs"], job.working)]
  try:
    for views, moments in _moments(job, number):
      values = _round_moments(job, views, moments, statistics)
      tokens, _ = job.encoders.tokenize([view.prompt for view in views])
      layout["pairs"] = [
        [encoded.LATENTS, options.dtype, list(values.shape[1:])],
        *([name, "int32", list(ids.shape[1:])] for name, ids in tokens.items()),
        [encoded.GEOMETRY, "int32", [6]],
        [encoded.CAPTION, "int32", []],
      ]
      for i, view in enumerate(views):
        place = captions.setdefault(view.prompt, len(captions))
        record = {name: ids[i] for name, ids in tokens.items()} | {
          encoded.LATENTS: values[i],
          encoded.GEOMETRY: np.array(view.geometry, np.int32),
          encoded.CAPTION: np.array(place, np.int32),
        }
        writers[0].write(encoded.pack(layout["pairs"], record))
      advance(sum(view.number == options.augmentations - 1 for view in views))
    if options.embeddings:
      writers.append(RecordWriter(job.out / names["captions"], job.working))
      layout["captions"] = _write_captions(job, list(captions), writers[-1], statistics)
    for writer in writers:
      writer.finish()
  except BaseException:
    for writer in writers:
      writer.discard()
    raise
  files = {
    writer.path.name: {
      "records": writer.count,
      "bytes": writer.path.stat().st_size,
      "sha256": encoded.digest(writer.path),
    }
    for writer in writers
  }
  found = {
    "layout": layout,
    "captions": len(captions) - 1,
    "truncated": job.encoders.tokenize(list(captions))[1],
    "statistics": statistics,
    "files": files,
  }
  text = json.dumps(found, sort_keys=True)
  write_atomically(done_path(job.working, number), text, scratch=job.working)


def _views(job: Job, number: int) -> Iterator[_View]:
  """The views of a shard's pairs in order; threads decode what comes next."""
  options, folder = job.options, job.folder
  look = functools.partial(crops.look, size=options.size, channels=job.encoders.channels)

  def see(row: int) -> list[_View]:
    pair, seen = folder.read(row), []
    for v in range(options.augmentations):
      view = crops.draw(options.seed, v, row, crop=options.crop, flip=options.flip)
      try:
        (first, place), (second, _) = (look(i, view) for i in (pair.image_0, pair.image_1))
      except InputError as error:
        raise folder.damaged(row, error) from error
      geometry = (*place, options.size, options.size)
      seen.append(_View((first, second), pair.prompt, row, v, geometry))
    return seen

  read = grain.ReadOptions(
    num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * job.encoders.pairs
  )
  rows = grain.MapDataset.source(job.rows(number)).map(see).to_iter_dataset(read)
  for seen in rows:
    yield from seen


def _moments(job: Job, number: int) -> Iterator[tuple[list[_View], np.ndarray]]:
  """Batches of a shard's views with their moments, float32 `[n, 2, 2, h, w, Z]`.

  While a batch is written the next one is computed.
  """
  views, size, before = _views(job, number), job.encoders.pairs, None
  while batch := list(itertools.islice(views, size)):
    # One size for all, so that there is one program and each image is computed the same way.
    padded = [*batch, *[batch[-1]] * (size - len(batch))]
    found = job.encoders.latents(np.stack([pixels for v in padded for pixels in v.pixels]))
    if before:
      yield before[0], _pairs(*before)
    before = batch, found
  if before:
    yield before[0], _pairs(*before)


def _pairs(views: list[_View], moments: Any) -> np.ndarray:
  moments = np.asarray(moments, np.float32)
  return moments.reshape(-1, 2, *moments.shape[1:])[: len(views)]  # [n, image, moment, h, w, Z]


def _round_moments(job: Job, views: list[_View], moments: np.ndarray, statistics: dict) -> Any:
  """The moments as they are stored, checked; adds what that costs to the statistics."""

  def where(i: int) -> str:
    return f"pair {views[i].row} of split {job.folder.split!r} in {job.folder.path}"

  stored = _round(moments, job.options.dtype, "the moments of the latents", where)
  mean, log_variance = (moments[:, :, i] for i in (encoded.MEAN, encoded.LOG_VARIANCE))
  spread = np.exp(log_variance, dtype=np.float64)
  measure = rounding.measure
  found = {
    "mean": measure(mean, stored[:, :, encoded.MEAN], spread),
    "log_variance": measure(log_variance, stored[:, :, encoded.LOG_VARIANCE]),
  }
  statistics |= rounding.add(statistics, found)
  return stored


def _write_captions(
  job: Job, captions: list[str], writer: RecordWriter, statistics: dict
) -> list[list]:
  """Writes the embeddings of captions and returns their layout."""
  size = job.encoders.captions
  for start in range(0, len(captions), size):
    here = captions[start : start + size]
    tokens, _ = job.encoders.tokenize(here + [""] * (size - len(here)))
    found = {k: np.asarray(x, np.float32) for k, x in job.encoders.text(tokens).items()}
    stored = {
      name: _round(x[: len(here)], job.options.dtype, name, lambda i: f"caption {here[i]!r}")  # noqa: B023
      for name, x in found.items()
    }
    measured = {k: rounding.measure(found[k][: len(here)], x) for k, x in stored.items()}
    statistics |= rounding.add(statistics, measured)
    layout = [[name, job.options.dtype, list(x.shape[1:])] for name, x in stored.items()]
    for i in range(len(here)):
      writer.write(encoded.pack(layout, {name: x[i] for name, x in stored.items()}))
  return layout


def _round(x: np.ndarray, dtype: str, name: str, where: Callable[[int], str]) -> np.ndarray:
  """`x` in the stored dtype.

  Raises:
    InputError: A number is not finite, before or after.
  """
  with np.errstate(over="ignore"):
    stored = x.astype(encoded.DTYPES[dtype])
  bad = ~np.isfinite(stored.astype(np.float32)).reshape(len(x), -1).all(axis=1)
  if bad.any():
    i = int(np.argmax(bad))
    largest = np.abs(x[i]).max()
    raise InputError(
      f"{name} of {where(i)} are not finite; look at the image and at the pipeline's weights"
      if not np.isfinite(largest)
      else f"{name} of {where(i)} reach {largest:.3g}, too large for {dtype}; "
      "store them as bfloat16 or float32"
    )
  return stored
