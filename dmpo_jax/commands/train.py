"""Train one model as a config says.

Started again with the same arguments, a run goes on from its last checkpoint. Any key of the config
can be set on the command line: --config.loss.alpha=0.05 --config.num_steps=100
"""

import argparse
import pathlib

TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--config", required=True, help="a Python file with get_config()")
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of this run")
  parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
  """Trains and says where the pipeline lies."""
  from dmpo_jax.commands.config_file import load_config
  from dmpo_jax.training.loop import train

  config = load_config(options.config, options.rest)
  result = train(config, options.workdir, show_progress=not options.no_progress)
  if result.captions_truncated:
    print(f"{result.captions_truncated} captions were longer than the context and were cut")
  print(f"{result.steps} steps done; pipeline in {result.pipeline}")
