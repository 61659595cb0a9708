"""Checkpoints of a run: whole, checked, and independent of how arrays lie on devices."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.array_checksums import checksums

POLL = 0.01  # seconds between looks at a save that is waited for


class Checkpoints:
  """The checkpoints of one run, in `directory/<step>`.

  A checkpoint appears whole or not at all (orbax writes beside and renames). With the arrays it
  keeps a checksum of each, so that bytes that changed on disk are noticed, and the position in the
  data. Nothing in it depends on how arrays lay on devices. Of a run of several processes all call
  the methods, in one order; each writes and reads what its devices hold.

  Args:
    directory: Where the checkpoints lie; made if it is not there.
    keep: How many of the latest are kept; None: all.
    read_only: Touch nothing: another process may be writing here.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int | None, read_only: bool = False):
    self._directory = pathlib.Path(directory).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
      async_options=ocp.AsyncOptions(barrier_sync_fn=self._meet),
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
    self._saving, self._failure = None, None
    self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

  def latest(self) -> int | None:
    """Step of the latest whole checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: dict) -> None:
    """Saves the state (a tree of arrays) and the data position (JSON) of a step.

    Writing goes on in the background: the next `save` or `wait` tells how it ended.

    Raises:
      OSError: This or the last step could not be written; earlier checkpoints are as they were.
    """
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave({**data, "checksums": checksums(state)}),
    )
    self.wait()
    self._saving = step
    with self._explained():
      self._manager.save(step, args=items)

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """The state and the data position saved at a step.

    Args:
      step: A step that was saved.
      like: A tree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes, dtypes and
        shardings that are wanted.

    Returns:
      (state, data).

    Raises:
      InputError: The checkpoint is another network's or optimizer's (the differences are listed),
        or it cannot be read, or an array is not what was saved.
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
      recorded = data.pop("checksums")
    except InputError:
      raise
    except Exception as error:  # orbax, tensorstore and json each raise their own
      reason = str(error).splitlines()[0] if str(error) else type(error).__name__
      raise InputError(self._damaged(step, reason)) from error
    wrong = [name for name, value in checksums(state).items() if recorded.get(name) != value]
    if wrong:
      raise InputError(self._damaged(step, f"the bytes of {', '.join(wrong[:5])} have changed"))
    return state, data

  def wait(self) -> None:
    """Returns once the last save lies on disk.

    Raises:
      OSError: It does not.
    """
    while self._manager.is_saving_in_progress():
      self.check()
      time.sleep(POLL)
    with self._explained():
      self._manager.wait_until_finished()
    self.check()

  def check(self) -> None:
    """Raises the OSError of a save that has failed in the background; costs next to nothing."""
    with self._explained():
      if self._failure is not None:
        raise self._failure
      self._manager.check_for_errors()

  def close(self) -> None:
    """Lets go of the directory, once nothing is written any more.

    Raises:
      OSError: The last save could not be written.
    """
    with self._explained():
      self._manager.close()

  def _meet(self, *, key: str, timeout_ms: int) -> None:
    """Waits for the same thread of all processes, as orbax's own threads do while they save.

    One whose part has failed comes here too before it tells, on its way out of the error, and waits
    for others that wait for its part. So the error is taken from it here.
    """
    self._failure = self._failure or sys.exception()
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns what orbax and tensorstore raise while they write into one OSError."""
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
