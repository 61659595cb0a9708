"""Options of the commands that run in several processes, and how they start and end together."""

import argparse
import functools
import logging
import os
import re
from collections.abc import Callable
from typing import NoReturn

from dmpo_jax.commands.supervise import supervise
from dmpo_jax.common import logging_setup
from dmpo_jax.errors import PROCESS_LOST, InputError, exit_status, short

LOGGER = logging.getLogger(__name__)
LONGEST_HEARTBEAT, MOST_PROCESSES = 86_400, 65_536


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--distributed", action="store_true", help="several processes, which jax finds"
  )
  parser.add_argument(
    "--coordinator", metavar="HOST:PORT", help="address of process 0, the same for all processes"
  )
  parser.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
  parser.add_argument(
    "--process-id", type=int, metavar="I", help="index of this process, 0 to N - 1"
  )
  parser.add_argument(
    "--heartbeat",
    type=int,
    default=30,
    metavar="SECONDS",
    help="time without a heartbeat after which a process counts as lost (default: 30)",
  )


def run(options: argparse.Namespace, work: Callable) -> int:
  """Runs a command in this process, or as one of several.

  Args:
    options: With the options of `add_arguments`.
    work: `work(options, processes)` does the work; an error in one process ends all.

  Returns:
    The exit status.

  Raises:
    InputError: The options do not fit together, or the work raises one in a single process.
  """
  if _is_one_of_several(options):
    return supervise(functools.partial(_run_as_one_of_several, options, work))
  from dmpo_jax.parallel.processes import Processes

  work(options, Processes())
  return 0


def _is_one_of_several(options: argparse.Namespace) -> bool:
  """Whether the run has several processes; raises InputError if the options do not fit together."""
  count, index = options.num_processes, options.process_id
  explicit = [options.coordinator, count, index]
  if not 1 <= options.heartbeat <= LONGEST_HEARTBEAT:
    bound = "at least 1 second" if options.heartbeat < 1 else "at most a day"
    raise InputError(f"--heartbeat must be {bound}, got {short(options.heartbeat)}")
  if options.distributed and any(x is not None for x in explicit):
    raise InputError(
      "--distributed finds the processes by itself; give either --distributed, or --coordinator, "
      "--num-processes and --process-id"
    )
  if all(x is None for x in explicit):
    return options.distributed
  if None in explicit:
    raise InputError("--coordinator, --num-processes and --process-id must be given together")
  if not 1 <= count <= MOST_PROCESSES:
    raise InputError(f"--num-processes must be 1 to {MOST_PROCESSES}, got {short(count)}")
  if not 0 <= index < count:
    raise InputError(
      f"--process-id must be 0 to --num-processes - 1, got {short(index)} of {count}"
    )
  address = re.fullmatch(
    r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", options.coordinator
  )
  if address is None or not 1 <= int(address[1]) <= 65_535:
    raise InputError(
      "--coordinator must be HOST:PORT with a port from 1 to 65535, got "
      f"{short(options.coordinator)}"
    )
  return True


def _run_as_one_of_several(options: argparse.Namespace, work: Callable) -> NoReturn:
  """Works and exits the process; an error of one process ends all with the same status."""
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
    logging_setup.set_process(processes.index, processes.count)
    work(options, processes)
    status, message = 0, ""
  except BaseException as error:
    ending = exit_status(error)
    if ending is None:
      LOGGER.exception("the run failed")
      if isinstance(error, jax.errors.JaxRuntimeError) and processes is not None:
        # A collective fails when another process is lost; jax detects that by its heartbeat.
        processes.wait_for_shutdown(1.5 * options.heartbeat + 5)
    status, message = ending or (1, f"{type(error).__name__}: {error}")
    if processes is None and isinstance(error, jax.errors.JaxRuntimeError):
      status, message = PROCESS_LOST, f"not all processes of the run connected: {error}"
    LOGGER.error("%s", message)
  if processes is None:
    os._exit(status)
  processes.exit(status, message)
