"""How fast preference pairs become a data set, and how fast training reads them again.

    python benchmarks/data.py --json data.json

Pairs of JPEGs are made on the fly (smooth colours with grain, so that a file has about the size of
a photograph's), converted by `data convert`'s own code, and read as training reads them: decoded,
scaled, cropped at random, flipped, tokenized. The loader's goal is ten times what one v5e chip eats
when it trains Stable Diffusion 1.5, 12 pairs a second; `x goal` above 1 is fast enough. For the
resume a data set of a million tiny pairs is written, and the time is taken until its files are
checked, its fingerprint is known and the next batch in the middle of the epoch is there.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dmpo_jax import interop
from dmpo_jax.data import builder, convert, datasets, index, sources
from dmpo_jax.data import pairs as records
from dmpo_jax.data.convert_options import Options
from dmpo_jax.data.convert_piece import RecordWriter

CHIP = 12.0  # pairs a second that one v5e chip takes, Stable Diffusion 1.5 at 512 pixels
GOAL = 10 * CHIP
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
  found = sources.find("pairs", source / "pairs.parquet")
  started = time.perf_counter()
  convert.convert(found, out, Options(rows_per_shard=max(1, pairs // 8)), workers=workers)
  return pairs / (time.perf_counter() - started)


def time_load(folder: pathlib.Path, size: int, batch_size: int, seconds: float) -> dict:
  """Pairs a second with threads that decode ahead, and of one thread without."""
  words = ["a", "photograph", "of", "thing", "in", "front", "something", "large", "and", "green"]
  tokenizer = interop.build_tokenizer(words, 77)

  def tokenize(captions):
    tokens = interop.tokenize(tokenizer, captions)
    return {"input_ids": tokens.ids}, tokens.truncated

  pairs = datasets.pairs(folder=str(folder), size=size, crop="random", flip=True)
  loader = pairs.loader(tokenize, channels=3, batch_size=batch_size, seed=0)
  return {
    "threads": _rate(loader.iterate(0), batch_size, seconds),
    "one_thread": _rate((loader[i] for i in range(10**9)), batch_size, seconds),
  }


def _rate(batches, batch_size: int, seconds: float) -> float:
  next(batches)
  next(batches)
  started, count = time.perf_counter(), 0
  while (passed := time.perf_counter() - started) < seconds:
    next(batches)
    count += batch_size
  batches.close()
  return count / passed


def make_epoch(folder: pathlib.Path, pairs: int, shards: int = 8) -> None:
  """Writes a finished data set of so many pairs, all with the same images of 16x16 pixels."""
  rng, each = np.random.default_rng(0), pairs // shards
  folder.mkdir()
  image, key = jpeg(rng, 16), records.prompt_key("a thing")
  pair = records.Pair("0", "a thing", image, image, 1.0, 1.0, key, "made up", (16, 16), (16, 16))
  record, files, sizes = builder.serialize(pair), {}, []
  for shard in range(shards):
    path = folder / builder.file_name("train", shard, shards)
    writer = RecordWriter(path, folder)
    for _ in range(each):
      writer.write(record)
    writer.finish()
    sizes.append((each, path.stat().st_size))
    files[path.name] = {"records": each, "bytes": path.stat().st_size}
  found = np.zeros(shards * each, index.DTYPE)
  found["p0"] = found["weight"] = 1
  found["content"] = rng.integers(2**63, size=(len(found), 2))
  np.save(folder / index.name("train"), found)
  report = {"record": builder.VERSION, "files": files, "splits": {"train": {"pairs": len(found)}}}
  (folder / builder.REPORT).write_text(json.dumps(report))
  builder.write_metadata(folder, {"train": sizes})


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


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=192, help="pairs that are converted")
  parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--workers", type=int, default=2, help="processes that convert")
  parser.add_argument("--seconds", type=float, default=5.0, help="of reading, for each figure")
  parser.add_argument("--epoch", type=int, default=1_000_000, help="pairs of the epoch to resume")
  parser.add_argument("--repeats", type=int, default=5, help="of the resume")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
  options = parser.parse_args()
  result = {"options": {k: v for k, v in vars(options).items() if k != "json"}}
  result |= {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    images = make_source(folder / "source", options.pairs, options.side)
    result["convert"] = {
      workers: time_convert(folder / "source", folder / f"out{workers}", options.pairs, workers)
      for workers in sorted({1, options.workers})
    }
    stored = sum(p.stat().st_size for p in (folder / "out1").glob("*array_record-*"))
    result["bytes_per_pair"] = {"stored": stored / options.pairs, "images": images / options.pairs}
    result["load"] = time_load(folder / "out1", options.side, options.batch_size, options.seconds)
    make_epoch(folder / "epoch", options.epoch)
    result["resume"] = time_resume(folder / "epoch", options.batch_size, options.repeats)
  result["load_average_after"] = os.getloadavg()[0]
  print(lines(result))
  if options.json:
    options.json.write_text(json.dumps(result, indent=2) + "\n")


def lines(result: dict) -> str:
  """The figures in words."""
  options, bytes_, resume = result["options"], result["bytes_per_pair"], result["resume"]
  parts = ", ".join(f"{n.replace('_', ' ')} {s:.3f}" for n, s in resume.items() if n != "total")
  return "\n".join(
    [
      f"{result['cores']} cores, load average {result['load_average']:.1f} to "
      f"{result['load_average_after']:.1f}; pairs of {options['side']}-px JPEGs",
      *(f"convert, {n} processes: {rate:.0f} pairs/s" for n, rate in result["convert"].items()),
      f"on disk: {bytes_['stored']:.0f} bytes a pair, {bytes_['stored'] / bytes_['images']:.3f} x "
      "its encoded images",
      *(
        f"load, {name.replace('_', ' ')}: {rate:.0f} pairs/s, {rate / GOAL:.2f} x goal "
        f"({GOAL:.0f}), {rate / CHIP:.1f} x one v5e chip"
        for name, rate in result["load"].items()
      ),
      f"resume in the middle of {options['epoch']:,} pairs: {resume['total']:.3f} s "
      f"({parts}), {RESUME_GOAL / resume['total']:.2f} x goal ({RESUME_GOAL:.0f} s)",
    ]
  )


if __name__ == "__main__":
  main()
