"""Records of ArrayRecord files in a bucket, each file copied to the local disk when it is read."""

import bisect
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from dmpo_jax.common import paths
from dmpo_jax.common.bucket import BucketPath


class BucketRecords(Sequence):
  """The records of several files by number, as grain's `ArrayRecordDataSource` has them.

  A file is copied into the cache of `paths.local_copy` before its first record is read. Threads may
  read at once; one that needs a file that another is copying waits for it.

  Args:
    folder: Folder of the files.
    counts: Name of each file -> number of its records, in their order.
  """

  def __init__(self, folder: BucketPath, counts: Mapping[str, int]):
    self._files = [folder / name for name in counts]
    self._ends = list(itertools.accumulate(counts.values()))
    self._opened: list[Any] = [None] * len(self._files)
    self._locks = [threading.Lock() for _ in self._files]

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, number: int) -> bytes:
    if not 0 <= number < len(self):
      raise IndexError(f"record {number} of {len(self)}")
    i = bisect.bisect_right(self._ends, number)
    return self._open(i)[number - (self._ends[i - 1] if i else 0)]

  def _open(self, i: int) -> Any:
    import grain

    with self._locks[i]:
      if self._opened[i] is None:
        local = paths.local_copy(self._files[i])
        source = grain.sources.ArrayRecordDataSource([str(local)])
        source[0]  # opens the file: one that leaves the cache later is read as it was
        self._opened[i] = source
      return self._opened[i]
