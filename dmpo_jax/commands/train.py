"""Train one model as a config says, in one process or as one of several.

Started again with the same arguments, a run goes on from its last checkpoint. Any key of the config
can be set on the command line: --config.loss.alpha=0.05 --config.num_steps=100

Several processes (hosts) are started with the same command each: with --distributed on TPU pods and
under Slurm, MPI or Kubernetes, where jax finds the others by itself; elsewhere with --coordinator,
--num-processes and --process-id. The work directory is one that all of them see.

exit status: 0 done, 1 the system refused something, 2 bad input, 75 pre-empted (SIGTERM): saved,
start again; 76 another process of the run was lost: start again; 130 interrupted
"""

import argparse
import functools
import logging
import os
import pathlib
from typing import NoReturn

from dmpo_jax.commands.supervise import supervise
from dmpo_jax.common import logging_setup
from dmpo_jax.errors import PROCESS_LOST, InputError, exit_status

LOGGER = logging.getLogger(__name__)
TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--config", required=True, help="a Python file with get_config()")
  parser.add_argument("--workdir", required=True, type=_folder, help="directory of this run")
  parser.add_argument("--no-progress", action="store_true", help="no progress bar")
  parser.add_argument(
    "--distributed", action="store_true", help="one of several processes, which jax finds"
  )
  parser.add_argument(
    "--coordinator", metavar="HOST:PORT", help="where process 0 listens, the same in all of them"
  )
  parser.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
  parser.add_argument("--process-id", type=int, metavar="I", help="which this is, 0 to N - 1")
  parser.add_argument(
    "--heartbeat",
    type=int,
    default=30,
    metavar="SECONDS",
    help="without a sign of life for so long, a process is lost (default: 30)",
  )


def _folder(text: str) -> pathlib.Path:
  if "://" in text:  # a path would take gs://bucket for the folder "gs:"
    raise argparse.ArgumentTypeError(
      f"{text!r} is a URL; a run needs a folder that can be locked, local or on a shared disk"
    )
  return pathlib.Path(text)


def run(options: argparse.Namespace) -> int:
  """Trains and says where the pipeline lies.

  Returns:
    The exit status.
  """
  if _is_one_of_several(options):
    return supervise(functools.partial(_run_as_one_of_several, options))
  from dmpo_jax.parallel.processes import Processes

  _train(options, Processes())
  return 0


def _train(options: argparse.Namespace, processes) -> None:
  import jax

  from dmpo_jax.training.config_file import load_config
  from dmpo_jax.training.run import train

  logging_setup.set_process(processes.index, processes.count)
  config = load_config(options.config, options.rest)
  devices = jax.devices()
  LOGGER.info(
    "process %d of %d, %d of %d devices (%s)",
    processes.index,
    processes.count,
    jax.local_device_count(),
    len(devices),
    devices[0].device_kind,
  )
  show_progress = not options.no_progress and processes.is_first
  result = train(config, options.workdir, show_progress=show_progress, processes=processes)
  if processes.is_first and result.captions_truncated:
    LOGGER.warning(
      "%d captions were longer than the context and were cut", result.captions_truncated
    )
  if processes.is_first:
    print(f"{result.steps} steps done; pipeline in {result.pipeline}")


def _is_one_of_several(options: argparse.Namespace) -> bool:
  """Whether the run has several processes, once the options are known to fit together."""
  count, index = options.num_processes, options.process_id
  given = [options.coordinator, count, index]
  if options.heartbeat < 1:
    raise InputError(f"--heartbeat must be at least 1 second, got {options.heartbeat}")
  if options.distributed and any(x is not None for x in given):
    raise InputError(
      "--distributed finds the processes by itself; leave out --coordinator, --num-processes and "
      "--process-id, or --distributed"
    )
  if all(x is None for x in given):
    return options.distributed
  if None in given:
    raise InputError("--coordinator, --num-processes and --process-id are given together")
  if not 0 <= index < count:
    raise InputError(f"--process-id must be 0 to --num-processes - 1, got {index} of {count}")
  host, _, port = options.coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise InputError(f"--coordinator must be HOST:PORT, got {options.coordinator!r}")
  return True


def _run_as_one_of_several(options: argparse.Namespace) -> NoReturn:
  """Trains and ends the process; what ends one ends all, with one status."""
  import jax

  from dmpo_jax.parallel.processes import connect

  processes = None
  try:
    processes = connect(
      options.coordinator,
      options.num_processes,
      options.process_id,
      heartbeat=options.heartbeat,
    )
    _train(options, processes)
    status, message = 0, ""
  except BaseException as error:
    ending = exit_status(error)
    if ending is None:
      LOGGER.exception("the run failed")
      if isinstance(error, jax.errors.JaxRuntimeError) and processes is not None:
        # A collective can fail because another process is gone; jax notices by its heartbeat.
        processes.wait_for_shutdown(1.5 * options.heartbeat + 5)
    status, message = ending or (1, f"{type(error).__name__}: {error}")
    if processes is None and isinstance(error, jax.errors.JaxRuntimeError):
      status, message = PROCESS_LOST, f"not all processes of the run came together: {error}"
    LOGGER.error("%s", message)
  if processes is None:
    os._exit(status)
  processes.exit(status, message)
