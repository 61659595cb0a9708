"""Cache latents and text embeddings of converted pairs, for all runs of a pipeline.

  dmpo-jax data cache-latents data/mine --pipeline stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --size 512 --out data/mine_sd15

writes a folder that training with the same pipeline reads in place of the pairs:

  config.data = ConfigDict({"name": "cached_latents", "folder": "data/mine_sd15"})

The mean and log variance of the VAE posterior are stored, so each step samples new latents.
Augmentation happens in pixels, alike for both images of a pair: --augmentations 4 --crop random
--flip stores four views of each pair, and an epoch reads one of them. The command prints the bytes
per pair and the error of rounding to the stored dtype.

ANY SIZE
  Run an interrupted command again to resume it. All devices of this machine share a batch. Several
  machines that see the same folder share the shards: --hosts 8 --host 0 on the first, --host 1 on
  the second, and so on, or --distributed, which asks jax.distributed; the last one to end completes
  the folder.
"""

import argparse

from dmpo_jax.commands.data import shared_work
from dmpo_jax.common import paths

# The defaults are repeated here, because to import them takes as long as to import numpy.
DTYPES = ("float16", "bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("folder", type=paths.argument, help="folder that data convert wrote")
  parser.add_argument(
    "--pipeline", required=True, help="folder in diffusers' format, or owner/name on the hub"
  )
  parser.add_argument("--revision", help="branch, tag or commit of the repository on the hub")
  parser.add_argument(
    "--variant", help="variant of the weights, such as fp16 (default: weights without a variant)"
  )
  parser.add_argument("--out", required=True, type=paths.argument, help="folder to write")
  parser.add_argument("--split", default="train", help="split to encode (default: train)")
  parser.add_argument(
    "--size", type=int, default=512, help="side of the square images in pixels (default: 512)"
  )
  parser.add_argument(
    "--augmentations", type=int, default=1, help="views stored of each pair (default: 1)"
  )
  parser.add_argument(
    "--crop", choices=("center", "random"), default="center", help="crop (default: center)"
  )
  parser.add_argument("--flip", action="store_true", help="flip half of the views")
  parser.add_argument("--seed", type=int, default=0, help="seed of the crops (default: 0)")
  parser.add_argument(
    "--dtype", choices=DTYPES, default="float16", help="stored dtype (default: float16)"
  )
  parser.add_argument(
    "--text",
    choices=("embeddings", "tokens"),
    default="embeddings",
    help="tokens take far less space, but the text encoders run in each step; needed where they "
    "are trained (default: embeddings)",
  )
  parser.add_argument(
    "--batch-size", type=int, default=1, help="pairs that a device encodes at a time (default: 1)"
  )
  parser.add_argument(
    "--pairs-per-shard", type=int, default=1000, help="pairs of a file (default: 1000)"
  )
  shared_work.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
  """Caches latents and prints size and errors of rounding."""
  from tqdm import tqdm

  from dmpo_jax.data import tfds_folder
  from dmpo_jax.data.latents import cache
  from dmpo_jax.data.latents import options as cache_options
  from dmpo_jax.pipelines import latent_encoders

  names = [name for name in cache_options.Options._fields if name != "embeddings"]
  settings = cache_options.Options(
    embeddings=options.text == "embeddings", **{name: getattr(options, name) for name in names}
  )
  cache_options.check(settings)
  host, hosts = shared_work.host_and_hosts(options)
  total = len(tfds_folder.PairSource(options.folder, options.split))
  embeddings = settings.embeddings
  pipeline = latent_encoders.load(
    options.pipeline, embeddings=embeddings, revision=options.revision, variant=options.variant
  )
  encoders = latent_encoders.make(pipeline, embeddings=embeddings, pairs=settings.batch_size)
  with tqdm(total=-(-total // hosts), desc="cache latents", unit="pair") as bar:
    manifest = cache.cache_latents(
      *(options.folder, options.out, encoders, settings),
      host=host,
      hosts=hosts,
      progress=bar.update,
    )
  if manifest is None:
    count = cache.missing(options.out)
    print(f"this host is done; {count} shards of other hosts are missing, the last one finishes")
    return
  print(cache.lines(manifest))
  print(f"cached latents in {options.out}")
