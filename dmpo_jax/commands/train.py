"""Train a model from a config, in one process or in several.

The same command resumes a run from its last checkpoint. Any key of the config can be set on the
command line: --config.loss.alpha=0.05 --config.num_steps=100
A config is a Python program that runs with your rights: only run configs that you trust.

With several processes (hosts), each runs this command: with --distributed on TPU pods and under
Slurm, MPI or Kubernetes, where jax finds the others; elsewhere with --coordinator, --num-processes
and --process-id. All of them must see the work directory.

exit status: 0 done; 1 error of the system; 2 bad input; 4 ended by an alarm of config.health.stop;
75 preempted (SIGTERM), checkpoint saved; 76 another process of the run was lost; 130 interrupted.
After 75, 76 and 130 the same command resumes.
"""

import argparse
import functools
import logging
from collections.abc import Callable

from dmpo_jax.commands import program_cache, several_processes
from dmpo_jax.common import paths

LOGGER = logging.getLogger(__name__)
TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--config", required=True, help="a Python file with get_config()")
  parser.add_argument("--workdir", required=True, type=paths.argument, help="directory of the run")
  parser.add_argument("--no-progress", action="store_true", help="no progress bar")
  several_processes.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
  """Trains, prints the path of the pipeline, and returns the exit status."""
  return several_processes.run(options, functools.partial(work, _train_policy))


def _train_policy(*arguments, **options) -> str:
  from dmpo_jax.training.run import train

  result = train(*arguments, **options)
  return f"{result.steps} steps done; pipeline in {result.pipeline}"


def work(train: Callable[..., str], options: argparse.Namespace, processes) -> None:
  """Trains from a config and prints the result.

  Args:
    train: `(config, workdir, *, show_progress, processes)` trains and returns the line to print.
    options: Those of `add_arguments`.
    processes: The processes of the run.
  """
  import jax

  from dmpo_jax.training.config_file import load_config

  config = load_config(options.config, options.rest)
  devices = jax.devices()
  kind = devices[0].device_kind
  LOGGER.info("%d of %d devices (%s)", jax.local_device_count(), len(devices), kind)
  if folder := program_cache.kept_in():
    LOGGER.info("compiled programs are kept in %s", folder)
  show_progress = not options.no_progress and processes.is_first
  line = train(config, options.workdir, show_progress=show_progress, processes=processes)
  if processes.is_first:
    print(line)
