"""Checkpoints of a run: complete, checksummed, and independent of the device layout."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from dmpo_jax.common import files, paths
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.array_checksums import checksums

LOGGER = logging.getLogger(__name__)
POLL = 0.01  # seconds between checks of a save in progress


class Checkpoints:
  """The checkpoints of one run, in `directory/<step>`.

  A checkpoint appears complete or not at all: orbax writes to a temporary folder and renames it, or
  in a bucket, writes commit_success.txt last.
  It contains the arrays of the state, a checksum of each to detect corruption, and the position in
  the data; it does not depend on the device layout. All processes of a run call the methods in the
  same order; each writes and reads the shards of its devices.

  Args:
    directory: Folder of the checkpoints; created if missing.
    keep: Number of latest checkpoints to keep; None: all.
    read_only: Write and delete nothing, because another process may be writing here.

  Raises:
    InputError: orbax cannot read its own records in the folder.
  """

  def __init__(self, directory: paths.Path, *, keep: int | None, read_only: bool = False):
    self._directory = paths.parse(directory).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
      async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
    self._saving, self._failure = None, None
    with files.reading(
      self._directory,
      "folder of checkpoints",
      advice="move the newest step's folder away to continue from the one before",
    ):
      try:
        manager = ocp.CheckpointManager(
          str(self._directory), options=options, item_handlers=handlers
        )
      except Exception:
        for path in self._directory.glob("[0-9]*/_CHECKPOINT_METADATA"):
          files.read_json(path, advice=f"move the folder {path.parent} away")
        raise
    self._manager = manager

  @property
  def directory(self) -> paths.Path:
    """Folder of the checkpoints."""
    return self._directory

  @property
  def last_saved(self) -> int | None:
    """Step of the last `save`, which may still be running; None before the first."""
    return self._saving

  def latest(self) -> int | None:
    """Step of the latest complete checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: dict) -> None:
    """Saves a checkpoint in the background; the next `save` or `wait` raises its errors.

    Args:
      step: Steps done.
      state: A tree of arrays.
      data: Position in the data, in JSON.

    Raises:
      OSError: This or the previous save failed; earlier checkpoints are unchanged.
    """
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave({**data, "checksums": checksums(state)}),
    )
    self.wait()
    self._saving = step
    LOGGER.debug("saving step %d in %s", step, self.directory)
    with self._as_oserror():
      self._manager.save(step, args=items)

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """Restores the state and the position in the data of a step.

    Args:
      step: Step of a checkpoint.
      like: A tree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes, dtypes and
        shardings to restore.

    Returns:
      (state, data), see `save`.

    Raises:
      InputError: The checkpoint is of another network or optimizer (the message lists the
        differences), cannot be read, or has an array with a wrong checksum.
    """
    path = self._directory / str(step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      saved = _shapes(self._manager.item_metadata(step)["state"].tree)
      wanted = _shapes(abstract)
      if different := differences(saved, wanted):
        raise InputError(
          f"checkpoint {path} is of another network or optimizer:\n"
          + describe(different, first="saved")
        )
      items = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        ),
      )
      state, data = items["state"], items["data"]
      recorded = dict(data.pop("checksums"))
    except InputError:
      raise
    except Exception as error:  # orbax, tensorstore and json raise many types
      reason = str(error).splitlines()[0] if str(error) else type(error).__name__
      raise InputError(self._damaged(step, reason)) from error
    wrong = [name for name, value in checksums(state).items() if recorded.get(name) != value]
    if wrong:
      raise InputError(self._damaged(step, f"the bytes of {', '.join(wrong[:5])} have changed"))
    return state, data

  def wait(self) -> None:
    """Waits until the last save is on disk.

    Raises:
      OSError: The save failed.
    """
    while self._manager.is_saving_in_progress():
      self.check()
      time.sleep(POLL)
    with self._as_oserror():
      self._manager.wait_until_finished()
    self.check()

  def check(self) -> None:
    """Raises OSError if a save in the background has failed; does not wait."""
    with self._as_oserror():
      if self._failure is not None:
        raise self._failure
      self._manager.check_for_errors()

  def close(self) -> None:
    """Waits for the last save and closes the directory.

    Raises:
      OSError: The last save failed.
    """
    with self._as_oserror():
      self._manager.close()

  def _barrier(self, *, key: str, timeout_ms: int) -> None:
    """The barrier of orbax's saving threads; notes the error of a failed thread before it waits.

    A thread whose write has failed calls this while it handles the error, and waits for processes
    that wait for its write. Its error would never surface without this note.
    """
    self._failure = self._failure or sys.exception()
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

  @contextlib.contextmanager
  def _as_oserror(self) -> Iterator[None]:
    """Converts all exceptions of orbax and tensorstore during a save to OSError."""
    try:
      yield
    except Exception as error:
      reason = str(error).splitlines()[0] if str(error) else type(error).__name__
      raise OSError(
        f"cannot save step {self._saving} in {self._directory}: {reason}. Earlier checkpoints are "
        "as they were; make room or allow writing there, and start again"
      ) from error

  def _damaged(self, step: int, reason: str) -> str:
    earlier = [s for s in self._manager.all_steps() if s < step]
    rest = f"step {max(earlier)}" if earlier else "the start"
    return (
      f"checkpoint {self._directory / str(step)} is damaged: {reason}. Move that folder away to "
      f"continue from {rest}"
    )


def _shapes(tree: Any) -> dict[str, tuple]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): (tuple(leaf.shape), str(leaf.dtype))
    for path, leaf in leaves
  }
