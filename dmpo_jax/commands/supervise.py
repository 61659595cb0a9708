"""A parent that only waits for its child, for a process that jax may end at any moment.

Where another process of a run is lost, jax ends this one from a thread of its own by SIGABRT, in
whatever it does: only a parent can turn that into an exit status with a meaning.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from dmpo_jax.errors import PREEMPTED, PROCESS_LOST

LOGGER = logging.getLogger(__name__)


def supervise(work: Callable[[], NoReturn]) -> int:
  """Runs `work` in a child and returns the exit status that tells what happened.

  SIGTERM and SIGINT are passed on; the child dies with the parent.

  Args:
    work: Ends its process itself, by os._exit. Nothing that has threads may be imported before.

  Returns:
    The child's own status; 76 where jax ended it because another process was lost; 75 where it had
    been told to stop and could not save any more; 128 + the number of another signal that killed
    it.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  alive, held = os.pipe()  # the parent holds the one end: when it dies, the other is closed
  child = os.fork()
  if child == 0:
    os.close(held)
    # A group of its own: a signal to the parent's group would come twice.
    os.setpgid(0, 0)
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()
    try:
      work()
    finally:
      os._exit(1)
  os.close(alive)
  told = set()

  def forward(number, frame):
    told.add(number)
    os.kill(child, number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
  _, status = os.waitpid(child, 0)
  if os.WIFEXITED(status):
    return os.WEXITSTATUS(status)
  by = os.WTERMSIG(status)
  if signal.SIGTERM in told and by in (signal.SIGTERM, signal.SIGABRT):
    return PREEMPTED
  if by == signal.SIGABRT:
    LOGGER.error(
      "jax ended this process, most likely because another process of the run was lost (its "
      "message is above); the same command goes on from the last checkpoint"
    )
    return PROCESS_LOST
  LOGGER.error("killed by %s", signal.Signals(by).name)
  return 128 + by


def _die_with_parent(alive: int) -> None:
  os.read(alive, 1)
  os._exit(1)
