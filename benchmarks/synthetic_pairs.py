"""Synthetic preference pairs for the benchmarks of data, and the rate at which a loader reads."""

import io
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options

CHIP = 12.0  # pairs per second of one v5e chip that trains Stable Diffusion 1.5 at 512 pixels
GOAL = 10 * CHIP


def jpeg(rng: np.random.Generator, side: int) -> bytes:
  """A square image with coarse colours and fine grain; 110 kB at 512 pixels."""
  coarse = rng.integers(256, size=(side // 16, side // 16, 3), dtype=np.uint8)
  smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
  grain = rng.integers(-12, 13, size=(side, side, 1))
  out = io.BytesIO()
  pixels = np.clip(np.asarray(smooth, int) + grain, 0, 255).astype(np.uint8)
  Image.fromarray(pixels).save(out, "JPEG", quality=90)
  return out.getvalue()


def make_source(folder: pathlib.Path, pairs: int, side: int) -> int:
  """Writes custom pairs as a parquet file of encoded images; returns the bytes of all images."""
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
  """Pairs per second of a conversion, the start of its processes included."""
  custom = source_reader.find("custom", source / "pairs.parquet")
  started = time.perf_counter()
  convert.convert(custom, out, Options(rows_per_shard=max(1, pairs // 8)), workers=workers)
  return pairs / (time.perf_counter() - started)


def rate(batches: Iterator, batch_size: int, seconds: float) -> dict[str, float]:
  """Pairs per second, and processor time per pair of all threads together, in milliseconds."""
  next(batches)
  next(batches)
  started, used, count = time.perf_counter(), time.process_time(), 0
  while (elapsed := time.perf_counter() - started) < seconds:
    next(batches)
    count += batch_size
  used = time.process_time() - used
  batches.close()
  return {"pairs_per_second": count / elapsed, "processor_ms": 1000 * used / count}
