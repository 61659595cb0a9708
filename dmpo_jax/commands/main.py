"""The command `dmpo-jax`."""

import argparse
import logging
import os
import signal
import sys
import threading
from typing import NoReturn

import dmpo_jax
from dmpo_jax.commands import program_cache
from dmpo_jax.common.logging_setup import LEVELS, log_to_stderr
from dmpo_jax.errors import exit_status, flush, printable

LOGGER = logging.getLogger("dmpo_jax")  # by name: in `python -m` this module is __main__
DESCRIPTION = """\
Align text-to-image diffusion models with preference pairs, in JAX.

  dmpo-jax quickstart --workdir runs/quickstart
      trains, aligns, samples and compares small models on real images, and writes a report
  dmpo-jax data convert custom my/pairs.csv --out data/mine
      a preference data set, your own or a published one, in the format that training reads
  dmpo-jax data cache-latents data/mine --pipeline PIPELINE --out data/mine_encoded
      its latents and text embeddings, computed once for all runs of a pipeline
  dmpo-jax plan --config configs/sd15_dmpo.py --topology v5e-16
      memory and time of a run on a TPU slice, from compiling its step without a TPU
  dmpo-jax train --config configs/digits_dmpo.py --workdir runs/dmpo
      one run from a config; any key can be set: --config.loss.alpha=0.05
  dmpo-jax potential --config configs/digits_ddo.py --workdir runs/ddo
      a potential that steers samples of a pipeline, whose weights stay as they are
  dmpo-jax sample --pipeline runs/dmpo/pipeline --prompt "the digit seven" --out samples
      images from a pipeline folder
  dmpo-jax score samples --scorer pickscore=yuvalkirstain/PickScore_v1
      a table with scores of the images of a folder
  dmpo-jax evaluate --reference PIPELINE dmpo=runs/dmpo --prompts FILE --scorer NAME --out DIR
      scores of models on a prompt set with intervals, and a report with images side by side
  dmpo-jax train-scorer --config configs/emoji_scorer.py --workdir runs/scorer
      a scorer of images from preference pairs, to make pairs with and to evaluate by
  dmpo-jax export --workdir runs/dmpo --out exported
      the weights of a run's last checkpoint as a folder in diffusers' format
  dmpo-jax inspect runs/dmpo/pipeline --against runs/reference/pipeline
      description of a model, a LoRA or a checkpoint, and its difference from another
  dmpo-jax objectives
      the losses that a config can name: equations, hyperparameters, requirements, sources
"""


class Parser(argparse.ArgumentParser):
  """A parser whose messages are safe to print, whatever the arguments hold."""

  def error(self, message: str) -> NoReturn:
    super().error(printable(message))


def main(arguments: list[str] | None = None) -> int:
  """Runs a subcommand.

  Args:
    arguments: Command line without the program's name; None: `sys.argv`.

  Returns:
    Exit status. 0: done. 1: error of the system (disk, permissions). 2: bad input. 3: the planned
    step does not fit. 4: an alarm ended the run. 75: preempted, checkpoint saved; 76: another
    process of the run was lost; after these two the same command resumes. 130: interrupted.
  """
  from dmpo_jax.commands import (
    data,
    evaluate,
    export,
    inspect,
    objectives,
    plan,
    potential,
    quickstart,
    sample,
    score,
    train,
    train_scorer,
  )

  # A parser of its own takes the option before and after the names of commands.
  logging_options = Parser("dmpo-jax", add_help=False, allow_abbrev=False)
  logging_options.add_argument(
    "--log-level",
    choices=LEVELS,
    help="lowest level of the messages on stderr (default: info; warning on processes but the "
    "first)",
  )
  parser = Parser(
    "dmpo-jax",
    description=DESCRIPTION,
    parents=[logging_options],
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=dmpo_jax.__version__)
  commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
  for module in (
    quickstart,
    data,
    plan,
    train,
    potential,
    sample,
    score,
    evaluate,
    train_scorer,
    export,
    inspect,
    objectives,
  ):
    name = module.__name__.rsplit(".", 1)[1].replace("_", "-")
    summary = module.__doc__.splitlines()[0]
    command = commands.add_parser(
      name,
      help=summary,
      description=module.__doc__,
      parents=[logging_options],
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(command)
    command.set_defaults(run=module.run, takes_config=getattr(module, "TAKES_CONFIG", False))
  log_level, arguments = logging_options.parse_known_args(arguments)
  options, rest = parser.parse_known_args(arguments)
  if rest and not options.takes_config:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  options.rest = rest
  # orbax warns about its own settings, and logs tracebacks of errors that it also raises.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns that there is no PyTorch
  with log_to_stderr(log_level.log_level):
    try:
      return options.run(options) or 0
    except (Exception, KeyboardInterrupt) as error:
      ending = exit_status(error)
      if ending is None:
        raise
      status, message = ending
      LOGGER.error("%s", message)
      return status


def entry() -> NoReturn:
  """Runs a subcommand and exits the process with its status.

  When orbax fails to save one array, each other array that is still being written prints a
  traceback "Event loop is closed": hundreds of them below the error that ends the run. They are
  dropped, and after an error the process does not wait for those writes.

  Python also drops a Ctrl-C that arrives in a callback, such as jax's hook of the garbage
  collector. It is sent again. A shell starts the background processes of a script with SIGINT
  ignored; a command that is sent one ends all the same.
  """
  default_hook = sys.unraisablehook

  def hook(unraisable) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
      again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
      again.daemon = True
      again.start()
    elif str(unraisable.exc_value) != "Event loop is closed":
      default_hook(unraisable)

  sys.unraisablehook = hook
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  program_cache.choose_folder()
  status = main()
  if status:
    flush()
    os._exit(status)
  sys.exit(0)


if __name__ == "__main__":
  entry()
