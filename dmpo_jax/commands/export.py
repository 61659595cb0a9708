"""Write a run's last checkpoint as a pipeline folder in diffusers' format.

A run writes its pipeline when it is done; this does it for one that is still going or was stopped.
"""

import argparse
import pathlib


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


def run(options: argparse.Namespace) -> None:
  """Writes the folder and says where it lies."""
  from dmpo_jax.training.export import export

  step = export(options.workdir, options.out, average=options.weights == "average")
  print(f"step {step} of {options.workdir} in {options.out}")
