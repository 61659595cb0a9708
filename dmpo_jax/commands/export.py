"""Write a run's last checkpoint as a pipeline folder in diffusers' format.

A run writes its pipeline when it is done; this does it for one that is still going or was stopped,
with other parameters than the average, or in half precision (for `torch_dtype=torch.float16` and
`variant="fp16"` in diffusers: --dtype fp16 --variant fp16). Components that were not trained come
from the pipeline that the run started from. The folder appears whole or not at all.
"""

import argparse
import pathlib

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of the run")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write")
  parser.add_argument(
    "--weights",
    choices=["average", "last"],
    default="average",
    help="the moving average where the run keeps one (default), or the last parameters",
  )
  parser.add_argument(
    "--dtype", choices=DTYPES, default="fp32", help="of the files (default: fp32)"
  )
  parser.add_argument(
    "--max-shard-size",
    default="10GB",
    metavar="SIZE",
    help="networks above it are split into several files with an index (default: 10GB)",
  )
  parser.add_argument(
    "--variant", help="part of the weights' file names, as fp16 in model.fp16.safetensors"
  )


def run(options: argparse.Namespace) -> None:
  """Writes the folder and says where it lies."""
  from dmpo_jax.interop.write_weights import parse_size
  from dmpo_jax.training.export import export

  size = parse_size(options.max_shard_size)  # before a checkpoint of many GB is read
  step = export(
    options.workdir,
    options.out,
    average=options.weights == "average",
    dtype=DTYPES[options.dtype],
    max_shard_size=size,
    variant=options.variant,
  )
  print(f"step {step} of {options.workdir} in {options.out}")
