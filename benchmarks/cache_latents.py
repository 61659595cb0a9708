"""Speed of caching latents, size of cached latents, and speed of reading them for training.

    python benchmarks/cache_latents.py --json cache_latents.json

benchmarks/data.py runs it too.

- `cache` runs the code of `data cache-latents` with Stable Diffusion 1.5's VAE and text encoder
  (random weights) on synthetic photographs, once to compile and once to measure;
- `sizes` writes cached latents as SD1.5 at 512 and SDXL at 1024 pixels would, of random numbers
  (means with a standard deviation of 5, log variances about -17, embeddings with a standard
  deviation of 1), and measures bytes per pair and errors of rounding, for each dtype;
- `read` reads them as training does. The goal is that of benchmarks/data.py: ten times the 12 pairs
  per second that one v5e chip needs.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from synthetic_pairs import GOAL, make_source, rate, time_convert

from dmpo_jax import interop, models
from dmpo_jax.data import CachedLatents, LatentEncoders
from dmpo_jax.data.latents import cache, records
from dmpo_jax.data.latents.options import Options
from dmpo_jax.pipelines import latent_encoders

VAE = {
  "_class_name": "AutoencoderKL",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
  "layers_per_block": 2,
}
TEXT = {
  "architectures": ["CLIPTextModel"],
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_attention_heads": 12,
}
DTYPES = ("float16", "bfloat16", "float32")


class Size(NamedTuple):
  """Shapes of the stored arrays; pooled is 0 where there is one text encoder."""

  latents: int
  width: int
  pooled: int


SIZES = {"sd15 512 px": Size(64, 768, 0), "sdxl 1024 px": Size(128, 2048, 1280)}


def make_pipeline() -> interop.Pipeline:
  """SD1.5's encoders with random weights, and the config of its UNet."""
  words = ["a", "photograph", "of", "thing", "in", "front", "something", "large", "and", "green"]
  tokenizer = interop.build_tokenizer(words, 77)
  text = {**TEXT, "vocab_size": 49408, "eos_token_id": tokenizer.eos_token_id}
  configs = {
    "unet": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768},
    "vae": VAE,
    "text_encoder": text,
  }
  key = jax.random.key(0)
  params = {
    "vae": models.build_autoencoder(VAE).init(key),
    "text_encoder": models.build(text).init(key),
  }
  return interop.Pipeline({}, configs, params, {"tokenizer": tokenizer})


def leaves(name: str) -> list[jax.ShapeDtypeStruct]:
  """The shapes of a network's parameters."""
  config = {"vae": VAE, "text_encoder": {**TEXT, "vocab_size": 49408}}[name]
  return jax.tree.leaves(models.abstract(config))


def random_encoders(size: Size) -> LatentEncoders:
  """Encoders that return random numbers of the right shapes and magnitudes."""
  rng = np.random.default_rng(0)
  tokens = ["input_ids", "input_ids_2"] if size.pooled else ["input_ids"]

  def tokenize(captions):
    return {name: np.zeros((len(captions), 77), np.int32) for name in tokens}, 0

  def latents(images):
    shape = (len(images), size.latents, size.latents, 4)
    normal = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
    return np.stack([5 * normal[0], normal[1] - 17], axis=1)

  def text(ids):
    count = len(ids["input_ids"])
    embeddings = {"encoder_hidden_states": rng.normal(size=(count, 77, size.width))}
    return embeddings | (
      {"text_embeds": rng.normal(size=(count, size.pooled))} if size.pooled else {}
    )

  fingerprint = {"encoders": {}, "tokenizers": {}}
  return LatentEncoders(fingerprint, tokenize, latents, text, pairs=4, captions=8, channels=3)


def measure_cache(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Pairs per second with real networks, compilation excluded."""
  make_source(work / "few", options.cache_pairs, options.side)
  time_convert(work / "few", work / "few_pairs", options.cache_pairs, 1)
  encoders = latent_encoders.make(make_pipeline(), embeddings=True, pairs=options.cache_batch)
  settings = Options(size=options.side, batch_size=options.cache_batch)
  for out in ("first", "second"):
    start = time.perf_counter()
    cache.cache_latents(work / "few_pairs", work / out, encoders, settings)
    seconds = time.perf_counter() - start
  device = f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}"
  return {"pairs_per_second": options.cache_pairs / seconds, "device": device}


def measure_size(
  pairs: pathlib.Path, work: pathlib.Path, size: Size, dtype: str, options: argparse.Namespace
) -> dict[str, Any]:
  """Bytes per pair, errors of rounding, and speed of reading."""
  settings = Options(size=64, dtype=dtype)
  manifest = cache.cache_latents(pairs, work, random_encoders(size), settings)
  sizes = records.bytes_by_kind(manifest)
  loader = CachedLatents(folder=str(work)).loader(batch_size=options.batch_size, seed=0)
  return {
    "bytes_per_pair": sizes["pairs"] / manifest["source"]["pairs"],
    "bytes_per_caption": sizes["captions"] / (manifest["captions"] + 1),
    "errors": manifest["errors"],
    "read": rate(loader.iterate(0), options.batch_size, options.seconds),
  }


def measure(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """All figures; those of the networks where options.cache_pairs is not 0."""
  result = {"sizes": {}}
  if options.cache_pairs:
    result["cache"] = measure_cache(work, options)
  count = min(options.pairs, 64)
  make_source(work / "small", count, 64)
  time_convert(work / "small", work / "small_pairs", count, 1)
  for name, size in SIZES.items():
    for dtype in DTYPES:
      out = work / f"{name} {dtype}".replace(" ", "_")
      figures = measure_size(work / "small_pairs", out, size, dtype, options)
      result["sizes"][f"{name}, {dtype}"] = figures
  return result


def describe(result: dict, options: argparse.Namespace) -> list[str]:
  """Lines about all figures."""
  lines = []
  if "cache" in result:
    figures = result["cache"]
    lines.append(
      f"cache latents at {options.side} px, SD1.5's networks, {figures['device']}: "
      f"{figures['pairs_per_second']:.3g} pairs/s"
    )
  for name, figures in result["sizes"].items():
    mean, text, read = (
      figures["errors"]["mean"],
      figures["errors"]["encoder_hidden_states"],
      figures["read"],
    )
    lines.append(
      f"{name}: {figures['bytes_per_pair']:,.0f} bytes per pair, "
      f"{figures['bytes_per_caption']:,.0f} per caption; rounding: means rms {mean['rms']:.2g} "
      f"({mean['of_spread']:.2g} of the posterior's), embeddings rms {text['rms']:.2g}; read "
      f"{read['pairs_per_second']:.0f} pairs/s, {read['pairs_per_second'] / GOAL:.1f} x goal "
      f"({GOAL:.0f}), {read['processor_ms']:.2f} ms of processor time per pair"
    )
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=64, help="pairs to read, at most 64")
  parser.add_argument("--batch-size", type=int, default=16, help="batch size of reading")
  parser.add_argument(
    "--seconds", type=float, default=5.0, help="seconds of reading for each figure"
  )
  parser.add_argument("--cache-pairs", type=int, default=2, help="pairs that the networks encode")
  parser.add_argument("--cache-batch", type=int, default=1, help="pairs per batch of the networks")
  parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
  options = parser.parse_args()
  settings = {k: v for k, v in vars(options).items() if k != "json"}
  result = {"options": settings, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
  with tempfile.TemporaryDirectory() as work:
    result |= measure(pathlib.Path(work), options)
  result["load_average_after"] = os.getloadavg()[0]
  print(
    f"{result['cores']} cores, load average {result['load_average']:.1f} to "
    f"{result['load_average_after']:.1f}"
  )
  print("\n".join(describe(result, options)))
  if options.json:
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
