"""Former names of options and commands, which end with an error that says the new name."""

import argparse

from dmpo_jax.errors import InputError


class _Renamed(argparse.Action):
  """Ends the program with the new name of an option."""

  def __call__(self, parser, namespace, values, option_string=None):
    parser.error(f"{self.option_strings[0]} is {self.const} now")


def add_renamed_option(parser: argparse.ArgumentParser, former: str, name: str) -> None:
  """Declares a former option, hidden in the help.

  Args:
    parser: Parser that has the option under its new name.
    former: Former name: "--part".
    name: New name.
  """
  parser.add_argument(
    former,
    action=_Renamed,
    const=name,
    nargs="?",
    default=argparse.SUPPRESS,
    help=argparse.SUPPRESS,
  )


def add_renamed_command(commands: argparse._SubParsersAction, former: str, name: str) -> None:
  """Declares a former subcommand of `dmpo-jax data`, hidden in the help.

  Args:
    commands: Subcommands that have the command under its new name.
    former: Former name.
    name: New name.
  """

  def run(options: argparse.Namespace) -> None:
    raise InputError(f"`dmpo-jax data {former}` is `dmpo-jax data {name}` now")

  command = commands.add_parser(former, add_help=False)
  command.add_argument("rest", nargs=argparse.REMAINDER)
  command.set_defaults(run_data=run)
