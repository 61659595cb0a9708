"""Pairs of a set's edits and a model's own edits of the same sources, as a folder of pairs.

The edit of the set is preferred. Its source and it are scaled and cropped as the model sees the
source, so that the three images of a record show the same region. The edits are divided into
shards, as `generate` divides prompts, and the bytes do not depend on interruptions or hosts.
"""

import io
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from PIL import Image

from dmpo_jax import interop
from dmpo_jax.common import paths as common_paths
from dmpo_jax.data import images, resumable, tfds_folder
from dmpo_jax.data.convert import finalize, moves, paths, shard
from dmpo_jax.data.convert import options as convert_options
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.sources.raw_pair import RawPair, swapped
from dmpo_jax.data.convert.tables import Chunk, Table
from dmpo_jax.data.mixture import FolderSplit, Mixture, have_sources
from dmpo_jax.data.pairs import Pair, preferred_first
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import sample_batches, sampling_inputs
from dmpo_jax.pipelines.finite import check_image
from dmpo_jax.pipelines.sample_folder import SamplingSettings, prepare
from dmpo_jax.sampling import to_uint8
from dmpo_jax.sampling.sources import Sources, fit

PLAN_VERSION = "1.0.0"
KIND = "own_edits"


class PairSources(Sources):
  """The source images of pairs, like an array `[N, H, W, C]`; see `Sources`.

  Args:
    pairs: N pairs.
    size: Height and width in pixels.
    channels: 3, or 1: luma.
  """

  def __init__(self, pairs: Sequence[Pair], size: tuple[int, int], channels: int):
    super().__init__([pair.condition for pair in pairs], size, channels)

  def __getitem__(self, rows: np.ndarray) -> "PairSources":
    selected = PairSources([], self._size, self._channels)
    selected.paths = [self.paths[row] for row in rows]
    return selected

  def read(self, path: bytes) -> np.ndarray:
    """The image of encoded bytes, uint8 `[H, W, C]`."""
    image = fit(images.decode(path), self._size)
    image = image.convert("L") if self._channels == 1 else image
    return np.asarray(image).reshape(self.shape[1:])


def generate(
  folder: pathlib.Path,
  out: pathlib.Path,
  pipeline: interop.Pipeline,
  settings: SamplingSettings,
  options: Options,
  *,
  model: str,
  seeds: Sequence[int] = (0,),
  split: str = "train",
  lora: pathlib.Path | None = None,
  batch_size: int | None = None,
  edits_per_shard: int = 16,
  host: int = 0,
  hosts: int = 1,
  progress: Callable[[int], None] = lambda edits: None,
) -> dict | None:
  """Samples a pipeline's own edits and pairs each with the edit of the set.

  Args:
    folder: Edits that `dmpo-jax data convert` wrote; the image more probably preferred is the edit
      of the set, ties are left out.
    out: Folder that becomes the data set; all hosts must see the same one.
    pipeline: A pipeline that edits images, its parameters as they are stored.
    settings: See `SamplingSettings`.
    options: Splits; the other options of a conversion keep their defaults.
    model: Name of the pipeline.
    seeds: Seeds of the model's edits of a source; each makes a pair, whose weights share that of
      the record.
    split: Split of `folder`.
    lora: LoRA file to merge into the pipeline.
    batch_size: Edits at a time; None: 64 without an autoencoder, otherwise 4.
    edits_per_shard: Records of `folder` for an output shard.
    host: Number of this host, 0 to hosts - 1.
    hosts: Number of hosts that share the work.
    progress: Called with the number of records of each shard that is done.

  Returns:
    The report of `convert.report`; None while shards of other hosts are missing.

  Raises:
    InputError: The folder holds no edits, the pipeline edits no images, a value is invalid, an
      image is not finite, or `out` holds something else.
    OSError: A file cannot be written.
  """
  convert_options.check(options)
  resumable.check_hosts(host, hosts)
  if not 1 <= edits_per_shard <= 1_000_000:
    raise InputError(f"edits_per_shard must be from 1 to 1,000,000, got {edits_per_shard}")
  records = tfds_folder.PairSource(common_paths.parse(folder), split)
  edits = FolderSplit(str(folder), split, "drop", len(records), records.__getitem__)
  if not have_sources([edits]):
    raise InputError(f"split {split!r} of {folder} has no source images; give a folder of edits")
  first = edits.read(0)
  sample = _Sampler(pipeline, settings, first, seeds, lora, batch_size)
  starts = range(0, len(edits), edits_per_shard)
  digest = Mixture([edits], [1.0]).fingerprint()
  plan = {
    "version": PLAN_VERSION,
    "record": tfds_folder.VERSION,
    "source": KIND,
    "edits": digest,
    "model": model,
    "samples": sample.plan,
    "options": convert_options.immutable(options),
    "edits_per_shard": edits_per_shard,
    "shards": len(starts),
  }
  target = common_paths.parse(out)
  made = ResumableFolder(
    target, target / paths.WORKING, target / "dataset_info.json", "set of edits"
  )
  with made.session(plan, host=host, hosts=hosts) as is_complete:
    if is_complete:
      return tfds_folder.check_files(made.out)
    own = range(host, len(starts), hosts)
    moves.restart_damaged(made, own)
    for number in own:
      rows = range(starts[number], min(starts[number] + edits_per_shard, len(edits)))
      if not made.is_done(number):
        _write(made, number, rows, edits, sample, model, options)
      progress(len(rows))
    chunks = [Chunk("edits", i, min(edits_per_shard, len(edits) - i), i, 0) for i in starts]
    details = {KIND: {"model": model, "seeds": list(seeds)}}
    return made.finish(
      len(starts),
      lambda: finalize.finish(made, KIND, [Table(chunks, digest)], options, details),
      tfds_folder.read_report,
    )


def missing(out: pathlib.Path) -> int:
  """Number of shards of an unfinished folder that are not written yet."""
  target = common_paths.parse(out)
  folder = ResumableFolder(target, target / paths.WORKING, target / "dataset_info.json", "set")
  return len(folder.missing(resumable.shards(target)))


class _Sampler:
  """Edits of pairs' sources, uint8 `[pairs, seeds, H, W, 3]`."""

  def __init__(self, pipeline, settings, first: Pair, seeds, lora, batch_size):
    self.settings, self.seeds = settings, np.asarray(seeds, np.uint32)
    # Sources of the size that the settings, or the pipeline, have.
    sized = lambda size, channels: PairSources([first], size, channels)  # noqa: E731
    job = prepare(pipeline, [first.prompt], self.seeds[:1], settings, lora=lora, sources=sized)
    self.job, self.size = job, job.shape[:2]
    self.batch_size = batch_size or (64 if job.functions.autoencoder is None else 4)
    fixed = {name: value for name, value in job.content.items() if name != "tokens"}
    self.plan = {"settings": job.settings, "content": fixed, "batch_size": self.batch_size}
    self.plan["seeds"] = self.seeds.tolist()

  def __call__(self, pairs: Sequence[Pair]) -> np.ndarray:
    repeated = [pair for pair in pairs for _ in self.seeds]
    prompts, seeds = [pair.prompt for pair in repeated], np.tile(self.seeds, len(pairs))
    inputs, _ = sampling_inputs(
      self.job.functions,
      prompts,
      seeds,
      negative=self.settings.negative,
      size=self.size,
      original=self.settings.original_size,
      crop=tuple(self.settings.crop or (0, 0)),
      target=self.settings.target_size,
      source=PairSources(repeated, self.size, self.job.shape[2]),
    )
    batches = sample_batches(
      self.job.sampler,
      self.job.params,
      inputs,
      batch_size=self.batch_size,
      devices=jax.local_devices(),
    )
    edited = [image for batch in batches for image in batch]
    for image, prompt, seed in zip(edited, prompts, seeds, strict=True):
      check_image(image, prompt=prompt, seed=int(seed), dtype=self.job.settings["dtype"])
    levels = np.asarray(to_uint8(np.stack(edited)))  # [N, H, W, 1 or 3]
    levels = np.broadcast_to(levels, (*levels.shape[:3], 3))
    return levels.reshape(len(pairs), len(self.seeds), *levels.shape[1:])


def _write(
  folder: ResumableFolder,
  number: int,
  rows: range,
  edits: FolderSplit,
  sample: _Sampler,
  model: str,
  options: Options,
) -> None:
  """Samples and writes a shard."""
  counts = Counter()

  def pairs() -> Iterator[tuple[int, list[shard.ConvertedPair]]]:
    records = [edits.read(row) for row in rows]
    for row, record in zip(rows, records, strict=True):
      edits.check_source(row, record.condition, True)
    for row, record, own in zip(rows, records, sample(records), strict=True):
      counts["rows"] += 1
      raw = _raw_pairs(record, own, sample, model)
      yield row, shard.keep(raw, options, counts, kind=KIND, folder=folder.out)

  shard.write_chunk(folder, number, pairs(), options, lambda: {"counts": counts})


def _raw_pairs(record: Pair, own: np.ndarray, sample: _Sampler, model: str) -> list[RawPair]:
  edit, made_by = (
    (record.image_0, record.model_0) if record.p0 > 0.5 else (record.image_1, record.model_1)
  )
  edit, source = (_fitted(encoded, sample.size) for encoded in (edit, record.condition))
  result = []
  for seed, pixels in zip(sample.seeds.tolist(), own, strict=True):
    name = f"{record.id}:{seed}"
    pair = RawPair(
      id=name,
      prompt=record.prompt,
      image_0=edit,
      image_1=_png(Image.fromarray(np.ascontiguousarray(pixels))),
      p0=1.0,
      weight=record.weight / len(own),
      model_0=made_by,
      model_1=model,
      user_id=record.user_id,
      condition=source,
    )
    result.append(pair if preferred_first(name) else swapped(pair))
  return result


def _fitted(encoded: bytes, size: tuple[int, int]) -> bytes:
  """An image of the size; its own bytes where it has that size."""
  image = images.decode(encoded)
  fitted = fit(image, size)
  return encoded if fitted is image else _png(fitted)


def _png(image: Image.Image) -> bytes:
  stream = io.BytesIO()
  image.save(stream, format="PNG")
  return stream.getvalue()
