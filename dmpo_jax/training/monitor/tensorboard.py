"""TensorBoard event file, written in the calling thread.

tensorboardX's SummaryWriter writes in a thread of its own. On a full disk that thread dies and the
next calls block forever.
"""

import pathlib
import time
from collections.abc import Mapping

import numpy as np

from dmpo_jax.common.atomic_files import writing

FLUSH_SECONDS = 10.0


class Events:
  """An event file in a folder.

  Args:
    folder: Folder of the file; created if missing.
    step: First step that is written; TensorBoard hides events of earlier files from this step on.

  Raises:
    OSError: The file cannot be written. All methods raise it too.
  """

  def __init__(self, folder: pathlib.Path, *, step: int):
    # A slow import, which searches for torch.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    self._folder = folder
    self._summary, self._proto = summary, event_pb2
    self._file = event_file_writer.EventsWriter(str(folder / "events"))
    self._flushed = -FLUSH_SECONDS
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step, session_log=start)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars by name."""
    summary = self._proto.Event().summary
    for name, value in values.items():
      summary.MergeFrom(self._summary.scalar(name, value))
    self._write(step, summary=summary)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes an image, uint8 `[H, W, C]`."""
    self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

  def close(self) -> None:
    """Flushes and closes the file."""
    with writing(self._folder):
      self._file.close()

  def _write(self, step: int, **content) -> None:
    with writing(self._folder):
      self._file.write_event(self._proto.Event(step=step, wall_time=time.time(), **content))
      if time.monotonic() >= self._flushed + FLUSH_SECONDS:
        self._file.flush()
        self._flushed = time.monotonic()
