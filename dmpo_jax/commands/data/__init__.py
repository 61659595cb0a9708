"""Bring preference data into the form that training reads.

  dmpo-jax data convert SOURCE PATH --out FOLDER

converts a published data set, or your own pairs, to a folder that TFDS and grain read; see
`dmpo-jax data convert --help` for an example of every source.

  dmpo-jax data generate --pipeline PIPELINE --prompts FILE --scorer NAME --out FOLDER

makes such a folder of a pipeline's own samples, chosen and labelled by a scorer.

  dmpo-jax data cache-latents FOLDER --pipeline PIPELINE --out CACHED

stores latents and text embeddings of such a folder, for all runs of that pipeline.
"""

import argparse

from dmpo_jax.commands.data import cache_latents, convert, emoji, generate, judge
from dmpo_jax.commands.data.renamed import add_renamed_command

COMMANDS = {
  "convert": convert,
  "generate": generate,
  "judge": judge,
  "cache-latents": cache_latents,
  "emoji": emoji,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the subcommands."""
  commands = parser.add_subparsers(title="data commands", metavar="COMMAND", required=True)
  for name, module in COMMANDS.items():
    command = commands.add_parser(
      name,
      help=module.__doc__.splitlines()[0],
      description=module.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(command)
    command.set_defaults(run_data=module.run)
  add_renamed_command(commands, "encode", "cache-latents")


def run(options: argparse.Namespace) -> None:
  """Runs the subcommand."""
  options.run_data(options)
