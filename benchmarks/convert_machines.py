"""Conversion of Pick-a-Pic's form by several processes, and the machine-hours of the whole set.

    python benchmarks/convert_machines.py --json convert_machines.json

Rows in Pick-a-Pic's columns, with JPEGs of its mean size in bytes (`--bytes`) at `--side` pixels,
are converted by as many processes as `--hosts` says, all at once and into one folder, as the tasks
of a job array do. The first measurement is one process alone. Processor time of a pair is the
figure that other programs on the machine change least; the estimate for the whole set takes it, and
the size of the set. What a machine-hour costs is the reader's to fill in.
"""

import argparse
import io
import json
import multiprocessing
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from train_step import machine

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options

PAIRS = 959_040  # of Pick-a-Pic v2
IMAGES = 322e9  # bytes of their images


def jpeg(rng: np.random.Generator, side: int, size: int) -> bytes:
  """A square JPEG of about so many bytes, by the amplitude of its grain."""
  coarse = rng.integers(256, size=(side // 16, side // 16, 3), dtype=np.uint8)
  smooth = np.asarray(
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.float32
  )
  grain = rng.standard_normal((side, side, 1), np.float32)
  low, high, best = 0.0, 64.0, b""
  for _ in range(8):
    out = io.BytesIO()
    pixels = np.clip(smooth + (low + high) / 2 * grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=80)
    best = out.getvalue()
    low, high = (low, (low + high) / 2) if len(best) > size else ((low + high) / 2, high)
  return best


def write_source(folder: pathlib.Path, pairs: int, side: int, size: int, group: int) -> int:
  """Writes a parquet file in Pick-a-Pic's columns; returns the bytes of its images."""
  rng = np.random.default_rng(0)
  pool = [jpeg(rng, side, size) for _ in range(8)]
  rows, total = [], 0
  for i in range(pairs):
    # A comment at the end makes equal pictures different files, as no two of the set are equal.
    images = [pool[(i + k) % len(pool)] + f"{i}.{k}".encode() for k in (0, 3)]
    total += sum(map(len, images))
    rows.append(
      {
        "caption": f"a photograph of thing {i} in front of something large and green",
        "jpg_0": images[0],
        "jpg_1": images[1],
        "label_0": float(i % 2),
        "label_1": float(1 - i % 2),
        "has_label": True,
        "ranking_id": i,
        "image_0_uid": f"{i}a",
        "image_1_uid": f"{i}b",
        "num_example_per_prompt": 1,
        "user_id": "1",
        "model_0": "left",
        "model_1": "right",
      }
    )
  folder.mkdir()
  pq.write_table(pa.Table.from_pylist(rows), folder / "train-0.parquet", row_group_size=group)
  return total


def _work(source, out: pathlib.Path, options: Options, host: int, hosts: int, barrier, results):
  """One task of the array: its seconds and processor seconds, the start of Python excluded."""
  barrier.wait()
  start, used = time.perf_counter(), time.process_time()
  convert.convert(source, out, options, workers=1, host=host, hosts=hosts)
  results.put((time.perf_counter() - start, time.process_time() - used))


def measure(folder: pathlib.Path, out: pathlib.Path, pairs: int, hosts: int, rows: int) -> dict:
  """Pairs per second of several processes together, and processor seconds of a pair."""
  source = source_reader.find("pickapic", folder)
  context = multiprocessing.get_context("spawn")
  barrier, results = context.Barrier(hosts), context.Queue()
  tasks = [
    context.Process(
      target=_work,
      args=(source, out, Options(rows_per_shard=rows), host, hosts, barrier, results),
    )
    for host in range(hosts)
  ]
  for task in tasks:
    task.start()
  measured = [results.get() for _ in tasks]
  for task in tasks:
    task.join()
  return {
    "hosts": hosts,
    "pairs_per_second": pairs / max(seconds for seconds, _ in measured),
    "processor_seconds": sum(used for _, used in measured) / pairs,
    "stored": sum(p.stat().st_size for p in out.glob("*.array_record-*")),
  }


def estimate(processor_seconds: float, cores: int) -> dict[str, float]:
  """Machine-hours of the whole set on machines with so many cores, and the bytes a second each."""
  hours = PAIRS * processor_seconds / cores / 3600
  return {"cores": cores, "machine_hours": hours, "megabytes_per_second": IMAGES / hours / 3.6e9}


def lines(result: dict[str, Any]) -> list[str]:
  """The result as text."""
  text = [f"{result['pairs']} pairs, images of {result['bytes_per_image'] / 1e3:.0f} kB"]
  for one in result["measured"]:
    text.append(
      f"{one['hosts']} process(es): {one['pairs_per_second']:.0f} pairs/s, "
      f"{1000 * one['processor_seconds']:.1f} ms of processor time a pair"
    )
  for one in result["whole_set"]:
    text.append(
      f"all {PAIRS:,} pairs on machines of {one['cores']} cores: {one['machine_hours']:.1f} "
      f"machine-hours in all, at {one['megabytes_per_second']:.0f} MB/s of images a machine"
    )
  return text


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=800, help="pairs of the sample")
  parser.add_argument("--side", type=int, default=1024, help="pixels of an image's side")
  parser.add_argument("--bytes", type=int, default=168_000, help="bytes of an image")
  parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2], help="processes at once")
  parser.add_argument("--cores", type=int, nargs="+", default=[16, 64], help="of the estimate")
  parser.add_argument("--json", type=pathlib.Path, help="file for all measurements")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    source = pathlib.Path(root) / "source"
    total = write_source(source, options.pairs, options.side, options.bytes, group=100)
    rows = max(1, options.pairs // 8)
    measured = [
      measure(source, pathlib.Path(root) / f"out-{hosts}", options.pairs, hosts, rows)
      for hosts in options.hosts
    ]
  best = min(one["processor_seconds"] for one in measured)
  result = {
    "machine": machine(),
    "pairs": options.pairs,
    "side": options.side,
    "bytes_per_image": total / 2 / options.pairs,
    "measured": measured,
    "whole_set": [estimate(best, cores) for cores in options.cores],
  }
  print("\n".join(lines(result)))
  if options.json:
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
