"""Describe a model, a LoRA or a run's checkpoint, and compare it with another.

PATH is a pipeline folder (or a repository of the hub, owner/name), the folder of one component, a
safetensors file, the directory of a run, or one of its checkpoints. Only names and shapes are read;
with --against the values too, one tensor at a time.

  dmpo-jax inspect runs/dmpo/pipeline --against runs/reference/pipeline   what training changed
  dmpo-jax inspect runs/dmpo --against runs/dmpo --against-weights last   EMA against last weights
  dmpo-jax inspect exported --variant fp16 --against original             equal but for rounding?
"""

import argparse
import math
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("path", metavar="PATH", help="the model, LoRA, run or checkpoint")
  parser.add_argument("--against", metavar="OTHER", help="another one to compare it with")
  parser.add_argument("--json", action="store_true", help="JSON with all values instead of tables")
  for prefix, what in (("", "PATH"), ("against-", "OTHER")):
    parser.add_argument(
      f"--{prefix}variant",
      help=f"variant of the weights of {what}, as fp16 in model.fp16.safetensors",
    )
    parser.add_argument(
      f"--{prefix}revision", help=f"branch, tag or commit of {what}, a repository on the hub"
    )
    parser.add_argument(
      f"--{prefix}weights",
      choices=["ema", "last", "reference"],
      help=f"if {what} is a run: EMA weights where it has them (default), the last weights, or "
      "those of a reference that moves",
    )


def run(options: argparse.Namespace) -> None:
  """Prints the description and the comparison."""
  import json

  from dmpo_jax.commands.inspect.compare import compare
  from dmpo_jax.commands.inspect.describe import describe
  from dmpo_jax.commands.inspect.sources import open_source
  from dmpo_jax.commands.inspect.text import comparison_text, description_text
  from dmpo_jax.errors import InputError, escaped

  source = open_source(
    options.path,
    variant=options.variant,
    revision=options.revision,
    weights=options.weights,
  )
  description = describe(source)
  if options.against is None:
    if options.against_variant or options.against_revision or options.against_weights:
      raise InputError(
        "--against-variant, --against-revision and --against-weights have no effect without "
        "--against"
      )
    if options.json:
      print(json.dumps(description, indent=2))
    else:
      print(escaped(description_text(description)))
    return
  other = open_source(
    options.against,
    variant=options.against_variant,
    revision=options.against_revision,
    weights=options.against_weights,
  )
  comparison = compare(source, other)
  if options.json:
    description |= {"against": describe(other), "differences": _finite(comparison)}
    print(json.dumps(description, indent=2))
  else:
    print(escaped(description_text(description)))
    print(escaped(comparison_text(comparison, options.path, options.against)))


def _finite(value: Any) -> Any:
  """Values with None for infinity (a relative change from zero), which JSON lacks."""
  if isinstance(value, dict):
    return {key: _finite(child) for key, child in value.items()}
  if isinstance(value, list):
    return [_finite(child) for child in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
