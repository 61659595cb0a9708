"""Logging of a command: messages on stderr, with the process's index where there are several.

Library code logs to `logging.getLogger(__name__)`, a child of the logger "dmpo_jax", and never
prints. A program that imports the library configures logging as it likes; a command does so with
`log_to_stderr`.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

from dmpo_jax.errors import printable

LEVELS = ("debug", "info", "warning", "error")


class StderrHandler(logging.Handler):
  """Writes each message to stderr, above progress bars.

  A message that cannot be written, as on a full disk, raises nothing: the error that ends a
  command and its exit status must not be replaced by one about its log.
  """

  def __init__(self, level: str | None):
    super().__init__()
    self._level = level
    self.set_process(0, 1)

  def set_process(self, index: int, count: int) -> None:
    """Sets the process that messages name, and the level where none was asked for.

    Args:
      index: Index of this process.
      count: Number of processes of the run.
    """
    self._prefix = f"process {index} of {count}: " if count > 1 else ""
    self.setLevel((self._level or ("info" if index == 0 else "warning")).upper())

  def format(self, record: logging.LogRecord) -> str:
    shown = record.levelno in (logging.DEBUG, logging.WARNING)
    level = f"{record.levelname.lower()}: " if shown else ""
    text = super().format(record)
    if record.exc_info is None:
      text = printable(text)  # it may hold words of a stranger's file
    return f"dmpo-jax: {self._prefix}{level}{text}"

  def emit(self, record: logging.LogRecord) -> None:
    try:
      line = self.format(record)
      with contextlib.suppress(OSError):
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # no bar without an import
        if tqdm is not None and getattr(tqdm, "_instances", None):
          tqdm.write(line, file=sys.stderr)
        else:
          print(line, file=sys.stderr)
        sys.stderr.flush()
    except Exception:
      self.handleError(record)


@contextlib.contextmanager
def log_to_stderr(level: str | None = None) -> Iterator[None]:
  """Writes the messages of "dmpo_jax" and its children to stderr, as long as the context lasts.

  Args:
    level: The lowest of `LEVELS` that is shown, on all processes; None: info on process 0 and
      warning on the others.
  """
  logger, handler = logging.getLogger("dmpo_jax"), StderrHandler(level)
  before = logger.handlers, logger.level, logger.propagate
  logger.handlers, logger.propagate = [handler], False  # absl may log what the root receives
  logger.setLevel(logging.DEBUG)
  try:
    yield
  finally:
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def set_process(index: int, count: int) -> None:
  """Has messages name the process; info and debug are then shown for process 0 alone by default.

  Args:
    index: Index of this process.
    count: Number of processes of the run; for 1 no process is named.
  """
  for handler in logging.getLogger("dmpo_jax").handlers:
    if isinstance(handler, StderrHandler):
      handler.set_process(index, count)
