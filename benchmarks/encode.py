"""How fast pairs are encoded, how large encoded pairs are, and how fast training reads them.

    python benchmarks/encode.py --json encode.json

It is a part of benchmarks/data.py, which can be run by itself.

- `encode` runs the code of `data cache-latents` with Stable Diffusion 1.5's VAE and text encoder
  (random weights) on made-up photographs, once to compile and once for the clock;
- `sizes` writes encoded pairs as SD1.5 at 512 and SDXL at 1024 pixels would, with made-up numbers
  (means with a spread of 5, log variances about -17, embeddings with a spread of 1), and tells
  bytes a pair and what rounding costs, for each dtype;
- `read` reads them as training does. The goal is that of benchmarks/data.py: ten times the 12 pairs
  a second that one v5e chip eats.
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
from data import GOAL, make_source, rate, time_convert

from dmpo_jax import interop, models
from dmpo_jax.data import LatentEncoders, datasets
from dmpo_jax.data.latents import encode
from dmpo_jax.data.latents import records as encoded
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
  """Shapes of what is stored of a pair; pooled is 0 where there is one text encoder."""

  latents: int
  width: int
  pooled: int


SIZES = {"sd15 512 px": Size(64, 768, 0), "sdxl 1024 px": Size(128, 2048, 1280)}


def make_pipeline() -> interop.Pipeline:
  """SD1.5's encoders with random weights; of its UNet the config alone."""
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
  return interop.Pipeline({}, configs, params, tokenizer)


def leaves(name: str) -> list[jax.ShapeDtypeStruct]:
  """The shapes of a network's parameters."""
  config = {"vae": VAE, "text_encoder": {**TEXT, "vocab_size": 49408}}[name]
  return jax.tree.leaves(models.abstract(config))


def made_up(size: Size) -> LatentEncoders:
  """Numbers of the right shapes and sizes, for no network."""
  rng = np.random.default_rng(0)
  tokens = ["input_ids", "input_ids_2"] if size.pooled else ["input_ids"]

  def tokenize(captions):
    return {name: np.zeros((len(captions), 77), np.int32) for name in tokens}, 0

  def moments(images):
    shape = (len(images), size.latents, size.latents, 4)
    normal = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
    return np.stack([5 * normal[0], normal[1] - 17], axis=1)

  def text(ids):
    count = len(ids["input_ids"])
    found = {"encoder_hidden_states": rng.normal(size=(count, 77, size.width))}
    return found | ({"text_embeds": rng.normal(size=(count, size.pooled))} if size.pooled else {})

  fingerprint = {"encoders": {}, "tokenizers": {}}
  return LatentEncoders(fingerprint, tokenize, moments, text, pairs=4, captions=8, channels=3)


def measure_encode(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """Pairs a second with real networks, compiled before."""
  make_source(work / "few", options.encode_pairs, options.side)
  time_convert(work / "few", work / "few_pairs", options.encode_pairs, 1)
  networks = latent_encoders.make(make_pipeline(), embeddings=True, pairs=options.encode_batch)
  chosen = encode.Options(size=options.side, batch_size=options.encode_batch)
  for out in ("first", "second"):
    started = time.perf_counter()
    encode.encode(work / "few_pairs", work / out, networks, chosen)
    seconds = time.perf_counter() - started
  device = f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}"
  return {"pairs_per_second": options.encode_pairs / seconds, "device": device}


def measure_size(
  pairs: pathlib.Path, work: pathlib.Path, size: Size, dtype: str, options: argparse.Namespace
) -> dict[str, Any]:
  """Bytes a pair, rounding, and how fast it is read."""
  chosen = encode.Options(size=64, dtype=dtype)
  manifest = encode.encode(pairs, work, made_up(size), chosen)
  found = {
    kind: sum(f["bytes"] for n, f in manifest["files"].items() if n.startswith(kind))
    for kind in encoded.KINDS
  }
  loader = datasets.cached_latents(folder=str(work)).loader(batch_size=options.batch_size, seed=0)
  return {
    "bytes_per_pair": found["pairs"] / manifest["source"]["pairs"],
    "bytes_per_caption": found["captions"] / (manifest["captions"] + 1),
    "errors": manifest["errors"],
    "read": rate(loader.iterate(0), options.batch_size, options.seconds),
  }


def measure(work: pathlib.Path, options: argparse.Namespace) -> dict:
  """All figures; of encoding itself where options.encode_pairs is not 0."""
  result = {"sizes": {}}
  if options.encode_pairs:
    result["encode"] = measure_encode(work, options)
  count = min(options.pairs, 64)
  make_source(work / "small", count, 64)
  time_convert(work / "small", work / "small_pairs", count, 1)
  for name, size in SIZES.items():
    for dtype in DTYPES:
      out = work / f"{name} {dtype}".replace(" ", "_")
      found = measure_size(work / "small_pairs", out, size, dtype, options)
      result["sizes"][f"{name}, {dtype}"] = found
  return result


def tell(result: dict, options: argparse.Namespace) -> list[str]:
  """All figures in words."""
  lines = []
  if "encode" in result:
    found = result["encode"]
    lines.append(
      f"encode at {options.side} px, SD1.5's networks, {found['device']}: "
      f"{found['pairs_per_second']:.3g} pairs/s"
    )
  for name, found in result["sizes"].items():
    mean, text, read = (
      found["errors"]["mean"],
      found["errors"]["encoder_hidden_states"],
      found["read"],
    )
    lines.append(
      f"{name}: {found['bytes_per_pair']:,.0f} bytes a pair, "
      f"{found['bytes_per_caption']:,.0f} a caption; rounding: means rms {mean['rms']:.2g} "
      f"({mean['of_spread']:.2g} of their spread), embeddings rms {text['rms']:.2g}; read "
      f"{read['pairs_per_second']:.0f} pairs/s, {read['pairs_per_second'] / GOAL:.1f} x goal "
      f"({GOAL:.0f}), {read['processor_ms']:.2f} ms of processor time a pair"
    )
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pairs", type=int, default=64, help="pairs that are read, at most 64")
  parser.add_argument("--batch-size", type=int, default=16, help="of reading")
  parser.add_argument("--seconds", type=float, default=5.0, help="of reading, for each figure")
  parser.add_argument("--encode-pairs", type=int, default=2, help="pairs that networks encode")
  parser.add_argument("--encode-batch", type=int, default=1, help="of them at a time")
  parser.add_argument("--side", type=int, default=512, help="of their images, in pixels")
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
  print("\n".join(tell(result, options)))
  if options.json:
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
