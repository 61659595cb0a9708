"""Speed of converting preference pairs, and of reading them for training.

    python benchmarks/data.py --json data.json

Synthetic pairs of JPEGs (smooth colours with grain, about as large as photographs) are converted by
the code of `data convert`. Then

- `load` reads them as training does: decoded, scaled, randomly cropped, flipped and tokenized, with
  threads that read ahead and in one thread. The goal is ten times the 12 pairs per second that one
  v5e chip needs to train Stable Diffusion 1.5, on two cores. The processor time per pair is the
  figure that other programs on the machine change least;
- `step` trains a small UNet with Diffusion-DPO on them, on these processors, and measures the
  fraction of the time in which the loop waits for the loader. Here, unlike on a TPU, the network
  and the loader share the cores;
- `resume` writes a data set of a million tiny pairs and measures the time until its files are
  checked, its fingerprint is computed and the next batch in the middle of the epoch is ready;
- `cache_latents` caches latents, and writes and reads cached latents; see
  benchmarks/cache_latents.py.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import cache_latents
import numpy as np
from synthetic_pairs import CHIP, GOAL, jpeg, make_source, rate, time_convert

from dmpo_jax import interop
from dmpo_jax.configs import emoji_reference
from dmpo_jax.data import FolderLoader, FolderPairs, crops, pair_index, tfds_folder
from dmpo_jax.data import pairs as records
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.record_writer import RecordWriter
from dmpo_jax.training.run import train

CORES = 2  # of the goal
RESUME_GOAL = 1.0  # seconds


def time_load(
  folder: pathlib.Path, size: int, batch_size: int, seconds: float, decoding: str = "exact"
) -> dict:
  """Rates of reading with threads that decode ahead, and in one thread."""
  words = ["a", "photograph", "of", "thing", "in", "front", "something", "large", "and", "green"]
  tokenizer = interop.build_tokenizer(words, 77)

  def tokenize(captions):
    tokens = interop.tokenize(tokenizer, captions)
    return {"input_ids": tokens.ids}, tokens.truncated

  pairs = FolderPairs(folder=str(folder), size=size, crop="random", flip=True, decoding=decoding)
  loader = pairs.loader(tokenize, channels=3, batch_size=batch_size, seed=0)
  return {
    "threads": rate(loader.iterate(0), batch_size, seconds),
    "one_thread": rate((loader[i] for i in range(10**9)), batch_size, seconds),
  }


def step_config(folder: pathlib.Path, size: int, batch_size: int, steps: int):
  """Config of Diffusion-DPO of the emoji UNet against itself, on pairs scaled to `size`."""
  config = emoji_reference.get_config()
  config.trained, config.caption_dropout = ("unet",), 0.0
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
  """Time of a train step, and the part of it in which the loop waits for a batch."""
  waits, ends = [], []
  iterate = FolderLoader.iterate

  def timed(loader: FolderLoader, start: int) -> Iterator:
    batches = iterate(loader, start)
    while True:
      start_time = time.perf_counter()
      batch = next(batches)
      ends.append(time.perf_counter())
      waits.append(ends[-1] - start_time)
      yield batch

  with mock.patch.object(FolderLoader, "iterate", timed):
    train(make_config(folder, **settings), work, show_progress=False)
  seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
  waited = sum(waits[1:]) / (len(waits) - 1)
  return {"step_seconds": seconds, "waited_seconds": waited, "fraction": waited / seconds}


def make_epoch(folder: pathlib.Path, pairs: int) -> None:
  """Writes a converted folder of many pairs, all with the same images of 16x16 pixels."""
  shards = -(-pairs // Options().rows_per_shard)  # as `data convert` writes them
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
  index = np.zeros(shards * each, pair_index.DTYPE)
  index["p0"] = index["weight"] = 1
  index["content"] = rng.integers(2**63, size=(len(index), 2))
  np.save(folder / pair_index.name("train"), index)
  report = {
    "source": "made up",
    "record": tfds_folder.VERSION,
    "options": {},
    "read": {"rows": len(index), "pairs": len(index)},
    "found": {},
    "dropped": {},
    "kept": len(index),
    "splits": {"train": {"pairs": len(index), "prompts": 1}},
    "reencoded_images": {},
    "files": files,
  }
  (folder / tfds_folder.REPORT).write_text(json.dumps(report))
  tfds_folder.write_metadata(folder, {"train": sizes})


def time_resume(folder: pathlib.Path, batch_size: int, repeats: int) -> dict:
  """Median seconds of each phase of a start in the middle of an epoch."""
  phases = {"open": [], "fingerprint": [], "first_batch": [], "total": []}
  for _ in range(repeats):
    times = [time.perf_counter()]
    pairs = FolderPairs(folder=str(folder), size=8)
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
    for name, seconds in zip(phases, np.diff(times).tolist(), strict=False):
      phases[name].append(seconds)
    phases["total"].append(times[-1] - times[0])
  return {name: statistics.median(seconds) for name, seconds in phases.items()}


def measure_convert(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Measures conversion; other measurements read the folder `work/out1`."""
  images = make_source(work / "source", options.pairs, options.side)
  rates = {
    workers: time_convert(work / "source", work / f"out{workers}", options.pairs, workers)
    for workers in sorted({1, options.workers})
  }
  stored = sum(p.stat().st_size for p in (work / "out1").glob("*array_record-*"))
  sizes = {"stored": stored / options.pairs, "images": images / options.pairs}
  return {"pairs_per_second": rates, "bytes_per_pair": sizes}


def describe_convert(result: dict, options: argparse.Namespace) -> list[str]:
  """Lines about the conversion."""
  stored, images = result["bytes_per_pair"]["stored"], result["bytes_per_pair"]["images"]
  return [
    *(f"convert, {n} processes: {r:.0f} pairs/s" for n, r in result["pairs_per_second"].items()),
    f"on disk: {stored:.0f} bytes a pair, {stored / images:.3f} x its encoded images",
  ]


def measure_load(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Measures the loader on the pairs of `measure_convert`."""
  size = options.size or options.side
  return time_load(work / "out1", size, options.batch_size, options.seconds, options.decoding)


def describe_load(result: dict, options: argparse.Namespace) -> list[str]:
  """Lines about loading."""
  lines = []
  for name, one in result.items():
    speed, cost = one["pairs_per_second"], one["processor_ms"]
    lines.append(
      f"load at {options.size or options.side} px, {name.replace('_', ' ')}: {speed:.0f} pairs/s, "
      f"{speed / GOAL:.2f} x goal ({GOAL:.0f}), {speed / CHIP:.1f} x one v5e chip; "
      f"{cost:.2f} ms of processor time per pair, or {CORES * 1000 / cost:.0f} pairs/s on "
      f"{CORES} cores"
    )
  return lines


def measure_step(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Measures a train step on the pairs of `measure_convert`."""
  settings = {"size": options.step_size, "batch_size": options.batch_size, "steps": options.steps}
  return time_step(work / "out1", work / "run", **settings)


def describe_step(result: dict, options: argparse.Namespace) -> list[str]:
  """Lines about the train step."""
  return [
    f"train step, {options.batch_size} pairs at {options.step_size} px: "
    f"{result['step_seconds']:.3f} s, of which {1000 * result['waited_seconds']:.1f} ms "
    f"({result['fraction']:.1%}) waiting for the loader"
  ]


def measure_resume(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Measures a start in the middle of a large epoch."""
  make_epoch(work / "epoch", options.epoch)
  return time_resume(work / "epoch", options.batch_size, options.repeats)


def describe_resume(result: dict, options: argparse.Namespace) -> list[str]:
  """Lines about resuming."""
  phases = ", ".join(f"{n.replace('_', ' ')} {s:.3f}" for n, s in result.items() if n != "total")
  return [
    f"resume in the middle of {options.epoch:,} pairs: {result['total']:.3f} s "
    f"({phases}), {RESUME_GOAL / result['total']:.2f} x goal ({RESUME_GOAL:.0f} s)"
  ]


class Measurement(NamedTuple):
  """A measurement.

  Attributes:
    measure: (folder for files, options) -> figures as JSON values. Later measurements may read the
      files of earlier ones.
    describe: (figures, options) -> lines of text.
  """

  measure: Callable[[pathlib.Path, argparse.Namespace], dict]
  describe: Callable[[dict, argparse.Namespace], list[str]]


MEASUREMENTS = {
  "convert": Measurement(measure_convert, describe_convert),
  "load": Measurement(measure_load, describe_load),
  "step": Measurement(measure_step, describe_step),
  "resume": Measurement(measure_resume, describe_resume),
  "cache_latents": Measurement(cache_latents.measure, cache_latents.describe),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--skip", nargs="*", default=(), choices=set(MEASUREMENTS) - {"convert"})
  parser.add_argument("--pairs", type=int, default=192, help="pairs to convert")
  parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
  parser.add_argument(
    "--size", type=int, default=0, help="side at which they are read (0: the original one)"
  )
  parser.add_argument("--decoding", default="exact", choices=crops.DECODING)
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--workers", type=int, default=2, help="processes of the conversion")
  parser.add_argument(
    "--seconds", type=float, default=5.0, help="seconds of reading for each figure"
  )
  parser.add_argument("--steps", type=int, default=12, help="train steps")
  parser.add_argument(
    "--step-size", type=int, default=32, help="side of the images in train steps, in pixels"
  )
  parser.add_argument(
    "--epoch", type=int, default=1_000_000, help="pairs of the epoch that is resumed"
  )
  parser.add_argument("--repeats", type=int, default=5, help="repeats of the resume")
  parser.add_argument("--cache-pairs", type=int, default=2, help="pairs that the networks encode")
  parser.add_argument("--cache-batch", type=int, default=1, help="pairs per batch of the networks")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
  options = parser.parse_args()
  settings = {k: v for k, v in vars(options).items() if k not in ("json", "skip")}
  result = {"options": settings, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
  lines = []
  with tempfile.TemporaryDirectory() as work:
    for name, measurement in MEASUREMENTS.items():
      if name not in options.skip:
        result[name] = measurement.measure(pathlib.Path(work), options)
        lines += measurement.describe(result[name], options)
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
