"""Say what a model, a LoRA or a run's checkpoint consists of, and how it differs from another.

PATH is a pipeline folder (or a repository of the hub, owner/name), the folder of one component, a
safetensors file, the directory of a run, or one of its checkpoints. Without --against only names
and shapes are read; with it, numbers too, one tensor at a time.

  dmpo-jax inspect runs/dmpo/pipeline --against runs/reference/pipeline   what has training changed
  dmpo-jax inspect runs/dmpo --against runs/dmpo --against-weights last   the average from the last
  dmpo-jax inspect exported --variant fp16 --against original             is it the same, rounded
"""

import argparse
import math
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("path", metavar="PATH", help="what to look at")
  parser.add_argument("--against", metavar="OTHER", help="what to compare it with")
  parser.add_argument("--json", action="store_true", help="everything, for programs")
  for prefix, what in (("", "PATH"), ("against-", "OTHER")):
    parser.add_argument(
      f"--{prefix}variant", help=f"which weights of {what}, as in model.fp16.safetensors"
    )
    parser.add_argument(
      f"--{prefix}weights",
      choices=["average", "last"],
      default="average",
      help=f"if {what} is a run: the moving average where it keeps one (default), or the last",
    )


def run(options: argparse.Namespace) -> None:
  """Prints what was found."""
  import json

  from dmpo_jax.commands.inspect.compare import compare
  from dmpo_jax.commands.inspect.describe import describe
  from dmpo_jax.commands.inspect.sources import open_source
  from dmpo_jax.commands.inspect.text import comparison_text, description_text
  from dmpo_jax.errors import InputError

  average = options.weights == "average"
  source = open_source(options.path, variant=options.variant, average=average)
  found = describe(source)
  if options.against is None:
    if options.against_variant or options.against_weights != "average":
      raise InputError("--against-variant and --against-weights are of no use without --against")
    print(json.dumps(found, indent=2) if options.json else description_text(found))
    return
  average = options.against_weights == "average"
  other = open_source(options.against, variant=options.against_variant, average=average)
  differing = compare(source, other)
  if options.json:
    everything = {**found, "against": describe(other), "differences": _finite(differing)}
    print(json.dumps(everything, indent=2))
  else:
    print(description_text(found))
    print(comparison_text(differing, options.path, options.against))


def _finite(value: Any) -> Any:
  """JSON has no infinity, which a change from zero is, relatively."""
  if isinstance(value, dict):
    return {key: _finite(child) for key, child in value.items()}
  if isinstance(value, list):
    return [_finite(child) for child in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
