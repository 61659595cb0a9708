"""Caches one shard: crops the pairs, encodes images and captions, and writes the records."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from dmpo_jax.data import crops
from dmpo_jax.data.latents import records, rounding
from dmpo_jax.data.latents.options import Options
from dmpo_jax.data.mixture import FolderSplit
from dmpo_jax.data.record_writer import RecordWriter
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError


class LatentEncoders(NamedTuple):
  """The frozen encoders of a pipeline as functions of arrays.

  Attributes:
    fingerprint: Fingerprints of networks and tokenizers, JSON values by name.
    tokenize: captions -> (token ids by name, int32 `[N, L]`; number of truncated captions).
    latents: uint8 `[2 pairs, H, W, C]` -> float32 `[2 pairs, 2, h, w, Z]`, mean and log variance of
      the VAE posterior. The result may be an array that is still being computed.
    text: token ids by name `[captions, L]` -> float32 text embeddings by name `[captions, ...]`.
    pairs: Pairs of a batch of `latents`.
    captions: Captions of a batch of `text`.
    channels: Channels of the images.
  """

  fingerprint: dict[str, Any]
  tokenize: Callable[[Sequence[str]], tuple[dict[str, np.ndarray], int]]
  latents: Callable[[np.ndarray], Any]
  text: Callable[[dict[str, np.ndarray]], dict[str, Any]]
  pairs: int
  captions: int
  channels: int


class Job(NamedTuple):
  """The work that all shards have in common.

  Attributes:
    split: The pairs.
    folder: The folder of the cached latents.
    encoders: The networks.
    options: Options.
    count: Number of shards.
    has_sources: Whether the pairs are edits of source images, whose latents are cached too.
  """

  split: FolderSplit
  folder: ResumableFolder
  encoders: LatentEncoders
  options: Options
  count: int
  has_sources: bool

  def rows(self, number: int) -> range:
    """Numbers of the pairs of a shard."""
    size = self.options.pairs_per_shard
    return range(number * size, min((number + 1) * size, len(self.split)))


class _View(NamedTuple):
  """A cropped pair before it is encoded."""

  pixels: tuple[np.ndarray, np.ndarray]
  prompt: str
  row: int
  number: int
  geometry: tuple[int, ...]
  seeds: tuple[int, int]
  scores: tuple[float, float]
  source: np.ndarray | None


def cache_shard(job: Job, number: int, progress: Callable[[int], None]) -> None:
  """Encodes and writes a shard. Its files appear complete, the completion marker last.

  Args:
    job: The work that all shards have in common.
    number: Number of the shard.
    progress: Called with the number of pairs of each encoded batch.

  Raises:
    InputError: A record is damaged, or a number is not finite or too large for the dtype.
    OSError: A file cannot be written.
  """
  options, out, working = job.options, job.folder.out, job.folder.working
  names = {k: records.file_name(k, options.split, number, job.count) for k in records.KINDS}
  captions, statistics, layout = {"": 0}, {}, {"captions": []}
  for name in names.values():
    for path in working.glob(f"{name}.*.tmp"):
      path.unlink(missing_ok=True)  # incomplete files of a killed process
  writers = [RecordWriter(out / names["pairs"], working)]
  try:
    for views, posteriors, modes in _posteriors(job, number):
      latents = _round_posteriors(job, views, posteriors, statistics)
      sources = _round_modes(job, views, modes, statistics)
      tokens, _ = job.encoders.tokenize([view.prompt for view in views])
      layout["pairs"] = [
        [records.LATENTS, options.dtype, list(latents.shape[1:])],
        *([name, "int32", list(ids.shape[1:])] for name, ids in tokens.items()),
        [records.GEOMETRY, "int32", [6]],
        [records.CAPTION, "int32", []],
        [records.SEEDS, "int64", [2]],
        [records.SCORES, "float32", [2]],
        *([[records.SOURCE, options.dtype, list(sources.shape[1:])]] if job.has_sources else []),
      ]
      for i, view in enumerate(views):
        caption = captions.setdefault(view.prompt, len(captions))
        record = {name: ids[i] for name, ids in tokens.items()} | {
          records.LATENTS: latents[i],
          records.GEOMETRY: np.array(view.geometry, np.int32),
          records.CAPTION: np.array(caption, np.int32),
          records.SEEDS: np.array(view.seeds, np.int64),
          records.SCORES: np.array(view.scores, np.float32),
        }
        if job.has_sources:
          record[records.SOURCE] = sources[i]
        writers[0].write(records.pack(layout["pairs"], record))
      progress(sum(view.number == options.augmentations - 1 for view in views))
    if options.embeddings:
      writers.append(RecordWriter(out / names["captions"], working))
      layout["captions"] = _write_captions(job, list(captions), writers[-1], statistics)
    for writer in writers:
      writer.finish()
  except BaseException:
    for writer in writers:
      writer.discard()
    raise
  made = {writer.path.name: writer.fingerprint for writer in writers}
  files = {w.path.name: {"records": w.count, **made[w.path.name]._asdict()} for w in writers}
  result = {
    "layout": layout,
    "captions": len(captions) - 1,
    "truncated": job.encoders.tokenize(list(captions))[1],
    "statistics": statistics,
    "files": files,
  }
  job.folder.mark_done(number, result, made)


def _views(job: Job, number: int) -> Iterator[_View]:
  """The views of a shard's pairs in order; threads decode ahead."""
  options, split = job.options, job.split
  load = functools.partial(crops.load, size=options.size, channels=job.encoders.channels)

  def views_of(row: int) -> list[_View]:
    pair, views = split.read(row), []
    seeds = tuple(-1 if seed is None else seed for seed in (pair.seed_0, pair.seed_1))
    scores = tuple(math.nan if x is None else x for x in (pair.score_0, pair.score_1))
    split.check_source(row, pair.condition, job.has_sources)
    for v in range(options.augmentations):
      crop = crops.sample(options.seed, v, row, crop=options.crop, flip=options.flip)
      try:
        (first, position), (second, _) = (load(i, crop) for i in (pair.image_0, pair.image_1))
        source = load(pair.condition, crop, like=position[:2])[0] if job.has_sources else None
      except InputError as error:
        raise split.damaged(row, error) from error
      geometry = (*position, options.size, options.size)
      views.append(_View((first, second), pair.prompt, row, v, geometry, seeds, scores, source))
    return views

  read = grain.ReadOptions(
    num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * job.encoders.pairs
  )
  for views in grain.MapDataset.source(job.rows(number)).map(views_of).to_iter_dataset(read):
    yield from views


def _posteriors(
  job: Job, number: int
) -> Iterator[tuple[list[_View], np.ndarray, np.ndarray | None]]:
  """Batches of a shard's views with their VAE posteriors, float32 `[n, 2, 2, h, w, Z]`.

  The third value is the mode of each source image's posterior, float32 `[n, h, w, Z]`; None where
  there are no sources. While the caller writes a batch the device computes the next one.
  """
  views, size, previous = _views(job, number), job.encoders.pairs, None
  while batch := list(itertools.islice(views, size)):
    # One batch size, so that one program computes each image in the same way.
    padded = [*batch, *[batch[-1]] * (size - len(batch))]
    posteriors = job.encoders.latents(np.stack([pixels for v in padded for pixels in v.pixels]))
    sources = None
    if job.has_sources:
      sources = job.encoders.latents(np.stack([v.source for v in padded]))
    if previous:
      yield _on_host(*previous)
    previous = batch, posteriors, sources
  if previous:
    yield _on_host(*previous)


def _on_host(
  views: list[_View], posteriors: Any, sources: Any
) -> tuple[list[_View], np.ndarray, np.ndarray | None]:
  posteriors = np.asarray(posteriors, np.float32)
  posteriors = posteriors.reshape(-1, 2, *posteriors.shape[1:])[: len(views)]  # [n, 2, 2, h, w, Z]
  if sources is not None:
    sources = np.asarray(sources, np.float32)[: len(views), records.MEAN]  # [n, h, w, Z]
  return views, posteriors, sources


def _where(job: Job, views: list[_View], i: int) -> str:
  return f"pair {views[i].row} of split {job.split.split!r} in {job.split.path}"


def _round_modes(
  job: Job, views: list[_View], modes: np.ndarray | None, statistics: dict
) -> np.ndarray | None:
  """The modes of the sources' posteriors in the stored dtype, or None without sources."""
  if modes is None:
    return None
  where = functools.partial(_where, job, views)
  stored = _round(modes, job.options.dtype, "the source's latents", where)
  statistics |= rounding.add(statistics, {records.SOURCE: rounding.measure(modes, stored)})
  return stored


def _round_posteriors(
  job: Job, views: list[_View], posteriors: np.ndarray, statistics: dict
) -> np.ndarray:
  """The posteriors in the stored dtype; adds the errors of rounding to the statistics."""

  where = functools.partial(_where, job, views)
  stored = _round(posteriors, job.options.dtype, "the VAE posterior", where)
  mean, log_variance = (posteriors[:, :, i] for i in (records.MEAN, records.LOG_VARIANCE))
  variance = np.exp(log_variance, dtype=np.float64)
  errors = {
    "mean": rounding.measure(mean, stored[:, :, records.MEAN], variance),
    "log_variance": rounding.measure(log_variance, stored[:, :, records.LOG_VARIANCE]),
  }
  statistics |= rounding.add(statistics, errors)
  return stored


def _write_captions(
  job: Job, captions: list[str], writer: RecordWriter, statistics: dict
) -> list[list]:
  """Writes the embeddings of captions and returns their layout."""
  size, dtype = job.encoders.captions, job.options.dtype
  for start in range(0, len(captions), size):
    batch = captions[start : start + size]
    tokens, _ = job.encoders.tokenize(batch + [""] * (size - len(batch)))
    embeddings = {
      name: np.asarray(x, np.float32)[: len(batch)] for name, x in job.encoders.text(tokens).items()
    }
    stored = {
      name: _round(x, dtype, name, lambda i: f"caption {batch[i]!r}")  # noqa: B023
      for name, x in embeddings.items()
    }
    errors = {name: rounding.measure(embeddings[name], x) for name, x in stored.items()}
    statistics |= rounding.add(statistics, errors)
    layout = [[name, dtype, list(x.shape[1:])] for name, x in stored.items()]
    for i in range(len(batch)):
      writer.write(records.pack(layout, {name: x[i] for name, x in stored.items()}))
  return layout


def _round(x: np.ndarray, dtype: str, name: str, where: Callable[[int], str]) -> np.ndarray:
  """Rounds an array to the stored dtype.

  Raises:
    InputError: A number is not finite, before or after.
  """
  with np.errstate(over="ignore"):
    stored = x.astype(records.DTYPES[dtype])
  bad = ~np.isfinite(stored.astype(np.float32)).reshape(len(x), -1).all(axis=1)
  if bad.any():
    i = int(np.argmax(bad))
    largest = np.abs(x[i]).max()
    raise InputError(
      f"{name} of {where(i)} is not finite; check the image and the pipeline's weights"
      if not np.isfinite(largest)
      else f"{name} of {where(i)} reaches {largest:.3g}, too large for {dtype}; "
      "store it as bfloat16 or float32"
    )
  return stored
