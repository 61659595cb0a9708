"""TensorBoard event file, written in the calling thread.

tensorboardX's SummaryWriter writes in a thread of its own. On a full disk that thread dies and the
next calls block forever. A file that has grown to `FILE_BYTES` is followed by another, because a
file in a bucket is uploaded whole.
"""

import time
from collections.abc import Mapping

import numpy as np

from dmpo_jax.common import mirrors, paths
from dmpo_jax.common.atomic_files import writing

FILE_BYTES = 1 << 24


class Events:
  """Event files in a folder.

  Args:
    folder: Folder of the file; created if missing.
    step: First step that is written; TensorBoard hides events of earlier files from this step on.

  Raises:
    OSError: The file cannot be written. All methods raise it too.
  """

  def __init__(self, folder: paths.Path, *, step: int):
    # A slow import, which searches for torch.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._folder, self._mirror = folder, mirrors.Mirror(folder)
    self._summary, self._proto = summary, event_pb2
    self._writer, self._files = event_file_writer.EventsWriter, 0
    self._open()
    self._seconds = mirrors.flush_seconds(folder)
    self._flushed = -self._seconds
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
      self._mirror.close()

  def _open(self) -> None:
    """Begins a new file."""
    suffix = f".{self._files}" if self._files else ""
    self._file = self._writer(str(self._mirror.local / "events"), suffix)
    self._files, self._bytes = self._files + 1, 0

  def _write(self, step: int, **content) -> None:
    with writing(self._folder):
      event = self._proto.Event(step=step, wall_time=time.time(), **content)
      self._file.write_event(event)
      self._bytes += event.ByteSize()
      if self._bytes > FILE_BYTES:
        self._file.close()
        self._open()
      if time.monotonic() >= self._flushed + self._seconds:
        self._file.flush()
        self._mirror.flush()
        self._flushed = time.monotonic()
