"""Encode converted pairs once: latents' moments and text embeddings, for every later run.

  dmpo-jax data cache-latents data/mine --pipeline stable-diffusion-v1-5/stable-diffusion-v1-5 \\
      --size 512 --out data/mine_sd15

writes a folder that training reads in the place of the pairs, with the same pipeline:

  config.data = ConfigDict({"name": "cached_latents", "folder": "data/mine_sd15"})

Means and log variances are stored, so latents are drawn afresh in each step. Augmentation is made
in pixels, the same for both images of a pair: --augmentations 4 --crop random --flip stores four
views of each, of which an epoch sees one. The command says how many bytes a pair takes and what
rounding to the stored dtype costs.

ANY SIZE
  An interrupted command goes on when it is given again. All devices of this machine share a batch.
  Several machines that see the same folder share the shards: --hosts 8 --host 0 on the first,
  --host 1 on the second, and so on, or --distributed, which asks jax.distributed; whichever is last
  finishes the set.
"""

import argparse
import pathlib

DTYPES = ("float16", "bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("folder", type=pathlib.Path, help="what data convert wrote")
  parser.add_argument(
    "--pipeline", required=True, help="folder in diffusers' format, or owner/name on the hub"
  )
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write")
  parser.add_argument("--split", default="train", help="which split (default: train)")
  parser.add_argument(
    "--size", type=int, default=512, help="side of the square images, pixels (default: 512)"
  )
  parser.add_argument(
    "--augmentations", type=int, default=1, help="views stored of each pair (default: 1)"
  )
  parser.add_argument("--crop", choices=("center", "random"), default="center", help="which square")
  parser.add_argument("--flip", action="store_true", help="flip half of the views")
  parser.add_argument("--seed", type=int, default=0, help="decides the views (default: 0)")
  parser.add_argument(
    "--dtype", choices=DTYPES, default="float16", help="of what is stored (default: float16)"
  )
  parser.add_argument(
    "--text",
    choices=("embeddings", "tokens"),
    default="embeddings",
    help="tokens alone take far less space, but then the text encoders run in each step; needed "
    "where they are trained (default: embeddings)",
  )
  parser.add_argument(
    "--batch-size", type=int, default=1, help="pairs that a device encodes at a time (default: 1)"
  )
  parser.add_argument(
    "--pairs-per-shard", type=int, default=1000, help="pairs in a file (default: 1000)"
  )
  parser.add_argument("--hosts", type=int, default=1, help="machines that share the work")
  parser.add_argument("--host", type=int, default=0, help="which of them this is, from 0")
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="take host and hosts from jax.distributed (TPU pods, Slurm, GKE)",
  )


def run(options: argparse.Namespace) -> None:
  """Encodes and prints what it cost."""
  import jax
  from tqdm import tqdm

  from dmpo_jax.data import tfds_folder
  from dmpo_jax.data.latents import encode
  from dmpo_jax.errors import InputError
  from dmpo_jax.pipelines import latent_encoders

  chosen = encode.Options(
    embeddings=options.text == "embeddings",
    **{n: getattr(options, n) for n in encode.Options._fields if n != "embeddings"},
  )
  encode.check(chosen)
  host, hosts = options.host, options.hosts
  if options.distributed:
    if (host, hosts) != (0, 1):
      raise InputError("--distributed finds out host and hosts itself; leave --host, --hosts away")
    jax.distributed.initialize()
    host, hosts = jax.process_index(), jax.process_count()
  total = len(tfds_folder.PairSource(options.folder, options.split))
  pipeline = latent_encoders.load(options.pipeline, embeddings=chosen.embeddings)
  networks = latent_encoders.make(pipeline, embeddings=chosen.embeddings, pairs=chosen.batch_size)
  with tqdm(total=-(-total // hosts), desc="encode", unit="pair") as bar:
    manifest = encode.encode(
      options.folder, options.out, networks, chosen, host=host, hosts=hosts, advance=bar.update
    )
  if manifest is None:
    left = encode.missing(options.out)
    print(f"this host is done; {left} shards of other hosts are missing, the last one finishes")
    return
  print(encode.lines(manifest))
  print(f"encoded data set in {options.out}")
