"""A parent process that turns the end of its child into an exit status.

When another process of a run is lost, jax aborts this one (SIGABRT) from its own thread at any
moment. Only a parent can turn that into a meaningful exit status.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from dmpo_jax.errors import INTERRUPTED, PREEMPTED, PROCESS_LOST

LOGGER = logging.getLogger(__name__)
INTERRUPT_SECONDS = 1.5
FORWARDED = (signal.SIGTERM, signal.SIGINT)


def supervise(work: Callable[[], NoReturn]) -> int:
  """Exit status of `work`, which runs in a child process.

  SIGTERM and SIGINT are passed on; the child ends with the parent, and at the latest
  `INTERRUPT_SECONDS` after SIGINT: compiled code and the compiler do not listen to it.

  Args:
    work: Exits its process itself, by os._exit. Modules with threads must not be imported before.

  Returns:
    Status of the child; 130 if it was killed after SIGINT; 76 if jax aborted it because another
    process was lost; 75 if it was preempted and killed before it saved; 128 + signal number for
    other signals.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  read_end, write_end = os.pipe()  # closed by the system when the parent ends
  # A signal that arrives before the parent forwards would end the parent alone: it waits instead.
  former = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
  child = os.fork()
  if child == 0:
    os.close(write_end)
    # A process group of its own: otherwise a signal to the parent's group arrives twice.
    os.setpgid(0, 0)
    # A shell starts the background processes of a script with SIGINT ignored. What is passed on is
    # meant.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_exit_with_parent, args=(read_end,), daemon=True).start()
    try:
      signal.pthread_sigmask(signal.SIG_SETMASK, former)
      work()
    finally:
      os._exit(1)
  os.close(read_end)
  forwarded = set()

  def forward(number, frame):
    if number in forwarded:
      return  # a terminal and a launch script both send it
    forwarded.add(number)
    with contextlib.suppress(ProcessLookupError):
      os.kill(child, number)
    if number == signal.SIGINT:
      killer = threading.Timer(INTERRUPT_SECONDS, _kill_group, (child,))
      killer.daemon = True
      killer.start()

  for number in FORWARDED:
    signal.signal(number, forward)
  signal.pthread_sigmask(signal.SIG_SETMASK, former)
  _, status = os.waitpid(child, 0)
  if os.WIFEXITED(status):
    return os.WEXITSTATUS(status)
  killer = os.WTERMSIG(status)
  if signal.SIGINT in forwarded and killer == signal.SIGKILL:
    return INTERRUPTED
  if signal.SIGTERM in forwarded and killer in (signal.SIGTERM, signal.SIGABRT):
    return PREEMPTED
  if killer == signal.SIGABRT:
    LOGGER.error(
      "jax aborted this process, most likely because another process of the run was lost (see the "
      "message above); the same command resumes from the last checkpoint"
    )
    return PROCESS_LOST
  LOGGER.error("killed by %s", signal.Signals(killer).name)
  return 128 + killer


def _kill_group(child: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(child, signal.SIGKILL)


def _exit_with_parent(read_end: int) -> None:
  os.read(read_end, 1)
  os._exit(1)
