"""The option of commands that score images."""

import argparse

from dmpo_jax.evaluation.scorers import SCORERS


def add_scorer(parser: argparse.ArgumentParser, *names: str, **settings: object) -> None:
  """Declares an option that `evaluation.scorers.parse_scorer` reads.

  Args:
    parser: The command's parser.
    *names: The option's names.
    **settings: Further settings of `add_argument` (required, action).
  """
  parser.add_argument(
    *names,
    dest="scorer",
    metavar="NAME[=WEIGHTS][,OPTION=VALUE]",
    help=f"a scorer: {', '.join(sorted(SCORERS))}",
    **settings,
  )
