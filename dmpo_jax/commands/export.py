"""Write a run's last checkpoint as a pipeline folder in diffusers' format, or as a LoRA file.

A finished run has written its pipeline; this command serves runs that are still training or were
stopped, the last weights instead of the EMA, and half precision (for `torch_dtype=torch.float16`
and `variant="fp16"` in diffusers: --dtype fp16 --variant fp16). Components that were not trained
come from the base pipeline, and a LoRA is merged into them; --lora writes the LoRA itself, for
diffusers' load_lora_weights, or with --format kohya for ComfyUI and AUTOMATIC1111. The output is
written whole or not at all.
"""

import argparse

from dmpo_jax.common import paths

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--workdir", required=True, type=paths.argument, help="directory of the run")
  target = parser.add_mutually_exclusive_group(required=True)
  target.add_argument("--out", type=paths.argument, help="folder to write the pipeline to")
  target.add_argument(
    "--lora", type=paths.argument, metavar="FILE", help="*.safetensors to write a run's LoRA to"
  )
  parser.add_argument(
    "--format",
    choices=["diffusers", "kohya"],
    help="names in the LoRA's file: for diffusers (default), or those of kohya's trainer, for "
    "ComfyUI and AUTOMATIC1111",
  )
  parser.add_argument(
    "--weights",
    choices=["ema", "last", "reference"],
    default="ema",
    help="EMA weights where the run has them (default), the last weights, or those of a reference "
    "that moves",
  )
  parser.add_argument(
    "--dtype", choices=DTYPES, default="fp32", help="dtype of the files (default: fp32)"
  )
  parser.add_argument(
    "--max-shard-size",
    metavar="SIZE",
    help="size above which a network is split into several files with an index (default: 10GB)",
  )
  parser.add_argument(
    "--variant", help="variant in the names of the weight files, as fp16 in model.fp16.safetensors"
  )


def run(options: argparse.Namespace) -> None:
  """Writes the output and prints its path."""
  from dmpo_jax.errors import InputError
  from dmpo_jax.interop.write_weights import parse_size
  from dmpo_jax.training.export import export, export_lora

  idle = ("max_shard_size", "variant") if options.lora is not None else ("format",)
  given = ", ".join(f"--{o.replace('_', '-')}" for o in idle if getattr(options, o) is not None)
  if given:
    target = "a LoRA is one file" if options.lora is not None else "it belongs to --lora"
    raise InputError(f"{given} has no effect here: {target}; leave it out")
  dtype = DTYPES[options.dtype]
  if options.lora is not None:
    form = options.format or "diffusers"
    step = export_lora(
      options.workdir, options.lora, weights=options.weights, form=form, dtype=dtype
    )
    print(f"step {step} of {options.workdir} in {options.lora}")
    return
  size = parse_size(options.max_shard_size or "10GB")  # before a checkpoint of many GB is read
  step = export(
    options.workdir,
    options.out,
    weights=options.weights,
    dtype=dtype,
    max_shard_size=size,
    variant=options.variant,
  )
  print(f"step {step} of {options.workdir} in {options.out}")
