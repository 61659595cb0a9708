"""Write a run's last checkpoint as a pipeline folder in diffusers' format, or as a LoRA file.

A run writes its pipeline when it is done; this does it for one that is still going or was stopped,
with other parameters than the average, or in half precision (for `torch_dtype=torch.float16` and
`variant="fp16"` in diffusers: --dtype fp16 --variant fp16). Components that were not trained come
from the pipeline that the run started from, and a LoRA is merged into them; --lora writes the LoRA
itself, for diffusers' load_lora_weights. What is written appears whole or not at all.
"""

import argparse
import pathlib

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of the run")
  target = parser.add_mutually_exclusive_group(required=True)
  target.add_argument("--out", type=pathlib.Path, help="folder to write the pipeline to")
  target.add_argument(
    "--lora", type=pathlib.Path, metavar="FILE", help="*.safetensors to write a run's LoRA to"
  )
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
  from dmpo_jax.training.export import export, export_lora

  average = options.weights == "average"
  if options.lora is not None:
    step = export_lora(options.workdir, options.lora, average=average)
    print(f"step {step} of {options.workdir} in {options.lora}")
    return
  size = parse_size(options.max_shard_size)  # before a checkpoint of many GB is read
  step = export(
    options.workdir,
    options.out,
    average=average,
    dtype=DTYPES[options.dtype],
    max_shard_size=size,
    variant=options.variant,
  )
  print(f"step {step} of {options.workdir} in {options.out}")
