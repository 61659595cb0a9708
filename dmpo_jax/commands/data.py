"""Bring preference data into the form that training reads.

  dmpo-jax data convert SOURCE PATH --out FOLDER

turns a published set, or your own pairs, into a folder that TFDS and grain read; see
`dmpo-jax data convert --help` for every source with an example.
"""

import argparse

from dmpo_jax.commands import data_convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the subcommands."""
  commands = parser.add_subparsers(title="data commands", metavar="COMMAND", required=True)
  for name, module in (("convert", data_convert),):
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
