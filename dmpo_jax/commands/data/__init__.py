"""Bring preference data into the form that training reads.

  dmpo-jax data convert SOURCE PATH --out FOLDER

turns a published set, or your own pairs, into a folder that TFDS and grain read; see
`dmpo-jax data convert --help` for every source with an example.

  dmpo-jax data encode FOLDER --pipeline PIPELINE --out ENCODED

makes latents and text embeddings of such a folder once, for all runs of that pipeline.
"""

import argparse

from dmpo_jax.commands.data import (
  cache_latents as data_encode,
)
from dmpo_jax.commands.data import (
  convert as data_convert,
)
from dmpo_jax.commands.data import (
  emoji as data_emoji,
)
from dmpo_jax.commands.data import (
  judge as data_judge,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the subcommands."""
  commands = parser.add_subparsers(title="data commands", metavar="COMMAND", required=True)
  modules = {
    "convert": data_convert,
    "emoji": data_emoji,
    "encode": data_encode,
    "judge": data_judge,
  }
  for name, module in modules.items():
    command = commands.add_parser(
      name,
      help=module.__doc__.splitlines()[0],
      description=module.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(command)
    command.set_defaults(run_data=module.run)


def run(options: argparse.Namespace) -> None:
  """Runs the subcommand."""
  options.run_data(options)
