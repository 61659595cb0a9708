"""TensorBoard's event file, written where it is asked to and not by a thread of its own.

tensorboardX's SummaryWriter hands events to a thread. Where the disk is full that thread dies, and
whoever hands it the next few events waits for ever.
"""

import pathlib
import time
from collections.abc import Mapping

import numpy as np

FLUSH_SECONDS = 10.0


class Events:
  """An event file in a folder.

  Args:
    folder: Where it lies; made if it is not there.
    step: The first step that is written: TensorBoard hides what earlier files have from it on.

  Raises:
    OSError: The file cannot be written; so do all methods.
  """

  def __init__(self, folder: pathlib.Path, *, step: int):
    # Slow to import: it looks for torch.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    self._summary, self._proto = summary, event_pb2
    self._file = event_file_writer.EventsWriter(str(folder / "events"))
    self._flushed = -FLUSH_SECONDS
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step, session_log=start)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes numbers by name."""
    found = self._proto.Event().summary
    for name, value in values.items():
      found.MergeFrom(self._summary.scalar(name, value))
    self._write(step, summary=found)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Writes a picture, uint8 `[H, W, C]`."""
    self._write(step, summary=self._summary.image(name, picture, dataformats="HWC"))

  def close(self) -> None:
    """Flushes and closes the file."""
    self._file.close()

  def _write(self, step: int, **content) -> None:
    self._file.write_event(self._proto.Event(step=step, wall_time=time.time(), **content))
    if time.monotonic() >= self._flushed + FLUSH_SECONDS:
      self._file.flush()
      self._flushed = time.monotonic()
