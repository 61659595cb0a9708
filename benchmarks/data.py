"""How fast preference pairs become a data set, and how fast training reads them again.

    python benchmarks/data.py --json data.json

Pairs of JPEGs are made on the fly (smooth colours with grain, so that a file has about the size of
a photograph's) and converted by `data convert`'s own code. Then

- `load` reads them as training does: decoded, scaled, cropped at random, flipped, tokenized, once
  with threads that read ahead and once in one thread. The goal is ten times what one v5e chip eats
  when it trains Stable Diffusion 1.5, 12 pairs a second, from two cores. Beside pairs a second it
  tells the processor time of a pair, which other programs on the machine disturb least;
- `step` trains a small UNet with Diffusion-DPO on them by the real loop, on these processors, and
  tells for what share of the steps' time the loop waited for the loader. The loader has to share
  the cores with the network here, which it does not on a TPU;
- `resume` writes a data set of a million tiny pairs and takes the time until its files are checked,
  its fingerprint is known and the next batch in the middle of the epoch is there;
- `encode` encodes some, and writes and reads encoded pairs; see benchmarks/encode.py.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dmpo_jax import interop
from dmpo_jax.configs import emoji_reference
from dmpo_jax.data import crops, datasets, mixture, pair_index, tfds_folder
from dmpo_jax.data import pairs as records
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.tfds_folder import RecordWriter
from dmpo_jax.training.run import train

CHIP = 12.0  # pairs a second that one v5e chip takes, Stable Diffusion 1.5 at 512 pixels
GOAL = 10 * CHIP
CORES = 2  # that the loader may use for it
RESUME_GOAL = 1.0  # seconds


def jpeg(rng: np.random.Generator, side: int) -> bytes:
  """A square image with large and small structure; 512 pixels give about 110 kB."""
  coarse = rng.integers(256, size=(side // 16, side // 16, 3), dtype=np.uint8)
  smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
  grain = rng.integers(-12, 13, size=(side, side, 1))
  out = io.BytesIO()
  pixels = np.clip(np.asarray(smooth, int) + grain, 0, 255).astype(np.uint8)
  Image.fromarray(pixels).save(out, "JPEG", quality=90)
  return out.getvalue()


def make_source(folder: pathlib.Path, pairs: int, side: int) -> int:
  """Writes own pairs as one parquet file of encoded images; returns the bytes of all images."""
  rng = np.random.default_rng(0)
  rows = [
    {
      "id": str(i),
      "prompt": f"a photograph of thing {i} in front of something large and green",
      "image_0": jpeg(rng, side),
      "image_1": jpeg(rng, side),
      "label_0": i % 2,
    }
    for i in range(pairs)
  ]
  folder.mkdir()
  pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet", row_group_size=16)
  return sum(len(row[name]) for row in rows for name in ("image_0", "image_1"))


def time_convert(source: pathlib.Path, out: pathlib.Path, pairs: int, workers: int) -> float:
  """Pairs a second of a whole conversion, the start of its processes included."""
  found = source_reader.find("custom", source / "pairs.parquet")
  started = time.perf_counter()
  convert.convert(found, out, Options(rows_per_shard=max(1, pairs // 8)), workers=workers)
  return pairs / (time.perf_counter() - started)


def time_load(
  folder: pathlib.Path, size: int, batch_size: int, seconds: float, decoding: str = "exact"
) -> dict:
  """Reading with threads that decode ahead, and in one thread without."""
  words = ["a", "photograph", "of", "thing", "in", "front", "something", "large", "and", "green"]
  tokenizer = interop.build_tokenizer(words, 77)

  def tokenize(captions):
    tokens = interop.tokenize(tokenizer, captions)
    return {"input_ids": tokens.ids}, tokens.truncated

  pairs = datasets.pairs(folder=str(folder), size=size, crop="random", flip=True, decoding=decoding)
  loader = pairs.loader(tokenize, channels=3, batch_size=batch_size, seed=0)
  return {
    "threads": rate(loader.iterate(0), batch_size, seconds),
    "one_thread": rate((loader[i] for i in range(10**9)), batch_size, seconds),
  }


def rate(batches: Iterator, batch_size: int, seconds: float) -> dict[str, float]:
  """Pairs a second, and processor time of a pair in milliseconds, all threads together."""
  next(batches)
  next(batches)
  started, used, count = time.perf_counter(), time.process_time(), 0
  while (passed := time.perf_counter() - started) < seconds:
    next(batches)
    count += batch_size
  used = time.process_time() - used
  batches.close()
  return {"pairs_per_second": count / passed, "processor_ms": 1000 * used / count}


def step_config(folder: pathlib.Path, size: int, batch_size: int, steps: int):
  """The emoji UNet, new, with Diffusion-DPO against itself, on pairs scaled to `size`."""
  config = emoji_reference.get_config()
  config.trained, config.reference, config.caption_dropout = ("unet",), True, 0.0
  config.model.unet.sample_size = size
  with config.unlocked():
    config.data = {"name": "pairs", "folder": str(folder), "size": size, "crop": "random"}
    config.loss = {"name": "dpo", "beta": 1000.0, "label_smoothing": 0.0}
  config.batch_size, config.num_steps, config.checkpoint.every = batch_size, steps, steps
  config.num_devices = 1
  return config


def time_step(
  folder: pathlib.Path, work: pathlib.Path, make_config: Callable = step_config, **settings: int
) -> dict:
  """Trains `steps` steps and tells for how long the loop waited for batches, the first excepted."""
  waits, ends = [], []
  iterate = mixture.FolderLoader.iterate

  def timed(loader: mixture.FolderLoader, start: int) -> Iterator:
    batches = iterate(loader, start)
    while True:
      began = time.perf_counter()
      batch = next(batches)
      ends.append(time.perf_counter())
      waits.append(ends[-1] - began)
      yield batch

  with mock.patch.object(mixture.FolderLoader, "iterate", timed):
    train(make_config(folder, **settings), work, show_progress=False)
  seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
  waited = sum(waits[1:]) / (len(waits) - 1)
  return {"step_seconds": seconds, "waited_seconds": waited, "share": waited / seconds}


def make_epoch(folder: pathlib.Path, pairs: int) -> None:
  """Writes a finished data set of so many pairs, all with the same images of 16x16 pixels."""
  shards = -(-pairs // Options().rows_per_shard)  # as many as `data convert` makes of them
  rng, each = np.random.default_rng(0), pairs // shards
  folder.mkdir()
  image, key = jpeg(rng, 16), records.prompt_key("a thing")
  pair = records.Pair("0", "a thing", image, image, 1.0, 1.0, key, "made up", (16, 16), (16, 16))
  record, files, sizes = tfds_folder.serialize(pair), {}, []
  for shard in range(shards):
    path = folder / tfds_folder.file_name("train", shard, shards)
    writer = RecordWriter(path, folder)
    for _ in range(each):
      writer.write(record)
    writer.finish()
    sizes.append((each, path.stat().st_size))
    files[path.name] = {"records": each, "bytes": path.stat().st_size}
  found = np.zeros(shards * each, pair_index.DTYPE)
  found["p0"] = found["weight"] = 1
  found["content"] = rng.integers(2**63, size=(len(found), 2))
  np.save(folder / pair_index.name("train"), found)
  report = {
    "record": tfds_folder.VERSION,
    "files": files,
    "splits": {"train": {"pairs": len(found)}},
  }
  (folder / tfds_folder.REPORT).write_text(json.dumps(report))
  tfds_folder.write_metadata(folder, {"train": sizes})


def time_resume(folder: pathlib.Path, batch_size: int, repeats: int) -> dict:
  """Median seconds of the parts of starting in the middle of an epoch."""
  parts = {"open": [], "fingerprint": [], "first_batch": [], "total": []}
  for _ in range(repeats):
    times = [time.perf_counter()]
    pairs = datasets.pairs(folder=str(folder), size=8)
    times.append(time.perf_counter())
    pairs.fingerprint()
    times.append(time.perf_counter())
    loader = pairs.loader(
      lambda captions: ({"input_ids": np.zeros((len(captions), 77), np.int32)}, 0),
      channels=3,
      batch_size=batch_size,
      seed=0,
    )
    batches = loader.iterate(len(pairs) // 2 // batch_size)
    next(batches)
    times.append(time.perf_counter())
    batches.close()
    for name, seconds in zip(parts, np.diff(times).tolist(), strict=False):
      parts[name].append(seconds)
    parts["total"].append(times[-1] - times[0])
  return {name: statistics.median(seconds) for name, seconds in parts.items()}


def measure_convert(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Converts a source into `work/out1`, which other measurements read."""
  images = make_source(work / "source", options.pairs, options.side)
  rates = {
    workers: time_convert(work / "source", work / f"out{workers}", options.pairs, workers)
    for workers in sorted({1, options.workers})
  }
  stored = sum(p.stat().st_size for p in (work / "out1").glob("*array_record-*"))
  sizes = {"stored": stored / options.pairs, "images": images / options.pairs}
  return {"pairs_per_second": rates, "bytes_per_pair": sizes}


def tell_convert(found: dict, options: argparse.Namespace) -> list[str]:
  """Conversion in words."""
  stored, images = found["bytes_per_pair"]["stored"], found["bytes_per_pair"]["images"]
  return [
    *(f"convert, {n} processes: {r:.0f} pairs/s" for n, r in found["pairs_per_second"].items()),
    f"on disk: {stored:.0f} bytes a pair, {stored / images:.3f} x its encoded images",
  ]


def measure_load(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Reads what `measure_convert` wrote."""
  size = options.size or options.side
  return time_load(work / "out1", size, options.batch_size, options.seconds, options.decoding)


def tell_load(found: dict, options: argparse.Namespace) -> list[str]:
  """Loading in words."""
  lines = []
  for name, one in found.items():
    speed, cost = one["pairs_per_second"], one["processor_ms"]
    lines.append(
      f"load at {options.size or options.side} px, {name.replace('_', ' ')}: {speed:.0f} pairs/s, "
      f"{speed / GOAL:.2f} x goal ({GOAL:.0f}), {speed / CHIP:.1f} x one v5e chip; "
      f"{cost:.2f} ms of processor time a pair, of which {CORES} cores make "
      f"{CORES * 1000 / cost:.0f} pairs/s"
    )
  return lines


def measure_step(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Trains on what `measure_convert` wrote."""
  settings = {"size": options.step_size, "batch_size": options.batch_size, "steps": options.steps}
  return time_step(work / "out1", work / "run", **settings)


def tell_step(found: dict, options: argparse.Namespace) -> list[str]:
  """The loader's share of a step in words."""
  return [
    f"train step, {options.batch_size} pairs at {options.step_size} px: "
    f"{found['step_seconds']:.3f} s, of which it waited {1000 * found['waited_seconds']:.1f} ms "
    f"for the loader: {found['share']:.1%}"
  ]


def measure_resume(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Starts in the middle of a large epoch."""
  make_epoch(work / "epoch", options.epoch)
  return time_resume(work / "epoch", options.batch_size, options.repeats)


def tell_resume(found: dict, options: argparse.Namespace) -> list[str]:
  """Resuming in words."""
  parts = ", ".join(f"{n.replace('_', ' ')} {s:.3f}" for n, s in found.items() if n != "total")
  return [
    f"resume in the middle of {options.epoch:,} pairs: {found['total']:.3f} s "
    f"({parts}), {RESUME_GOAL / found['total']:.2f} x goal ({RESUME_GOAL:.0f} s)"
  ]


def measure_encode(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """What benchmarks/encode.py measures."""
  import encode

  return encode.measure(work, options)


def tell_encode(found: dict, options: argparse.Namespace) -> list[str]:
  """Encoding in words."""
  import encode

  return encode.tell(found, options)


class Measurement(NamedTuple):
  """Something that is measured.

  Attributes:
    measure: (folder for files, options) -> its figures, which JSON can hold. Later measurements see
      the files of earlier ones.
    tell: (its figures, options) -> lines of text.
  """

  measure: Callable[[pathlib.Path, argparse.Namespace], dict]
  tell: Callable[[dict, argparse.Namespace], list[str]]


MEASUREMENTS = {
  "convert": Measurement(measure_convert, tell_convert),
  "load": Measurement(measure_load, tell_load),
  "step": Measurement(measure_step, tell_step),
  "resume": Measurement(measure_resume, tell_resume),
  "encode": Measurement(measure_encode, tell_encode),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--skip", nargs="*", default=(), choices=set(MEASUREMENTS) - {"convert"})
  parser.add_argument("--pairs", type=int, default=192, help="pairs that are converted")
  parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
  parser.add_argument("--size", type=int, default=0, help="that they are read at (0: as they are)")
  parser.add_argument("--decoding", default="exact", choices=crops.DECODING)
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--workers", type=int, default=2, help="processes that convert")
  parser.add_argument("--seconds", type=float, default=5.0, help="of reading, for each figure")
  parser.add_argument("--steps", type=int, default=12, help="train steps")
  parser.add_argument("--step-size", type=int, default=32, help="of their images, in pixels")
  parser.add_argument("--epoch", type=int, default=1_000_000, help="pairs of the epoch to resume")
  parser.add_argument("--repeats", type=int, default=5, help="of the resume")
  parser.add_argument("--encode-pairs", type=int, default=2, help="pairs that networks encode")
  parser.add_argument("--encode-batch", type=int, default=1, help="of them at a time")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
  options = parser.parse_args()
  settings = {k: v for k, v in vars(options).items() if k not in ("json", "skip")}
  result = {"options": settings, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
  lines = []
  with tempfile.TemporaryDirectory() as work:
    for name, measurement in MEASUREMENTS.items():
      if name not in options.skip:
        result[name] = measurement.measure(pathlib.Path(work), options)
        lines += measurement.tell(result[name], options)
  result["load_average_after"] = os.getloadavg()[0]
  print(
    f"{result['cores']} cores, load average {result['load_average']:.1f} to "
    f"{result['load_average_after']:.1f}; pairs of {options.side}-px JPEGs"
  )
  print("\n".join(lines))
  if options.json:
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
