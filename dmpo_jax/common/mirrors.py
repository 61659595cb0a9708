"""Local folders for libraries that append to files, and their copies in buckets."""

import pathlib
import tempfile

from dmpo_jax.common import paths

# Seconds between writes of files that grow: an upload costs tens of milliseconds.
LOCAL_SECONDS, BUCKET_SECONDS = 10.0, 30.0


def flush_seconds(path: paths.Path) -> float:
  """Seconds between two writes of a file that grows."""
  return LOCAL_SECONDS if isinstance(path, pathlib.Path) else BUCKET_SECONDS


class Mirror:
  """A local folder that stands for one anywhere.

  Args:
    target: The folder; a local one is used itself, and made if it is missing.

  Attributes:
    local: The folder to write to.
  """

  def __init__(self, target: paths.Path):
    self._target, self._temporary = target, None
    self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
    if isinstance(target, pathlib.Path):
      target.mkdir(parents=True, exist_ok=True)
      self.local = target
    else:
      self._temporary = tempfile.TemporaryDirectory(prefix="dmpo_jax.")
      self.local = pathlib.Path(self._temporary.name)

  def flush(self) -> None:
    """Uploads the files that have changed since the last time."""
    if isinstance(self._target, pathlib.Path):
      return
    for file in sorted(path for path in self.local.rglob("*") if path.is_file()):
      status = file.stat()
      version = (status.st_size, status.st_mtime_ns)
      if self._uploaded.get(file) != version:
        (self._target / file.relative_to(self.local).as_posix()).upload(file)
        self._uploaded[file] = version

  def close(self) -> None:
    """Uploads what has changed, and removes a temporary folder."""
    try:
      self.flush()
    finally:
      if self._temporary is not None:
        self._temporary.cleanup()
