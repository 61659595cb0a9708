"""Checkpoints of a run, and the identity that keeps two runs apart."""

import json
import os
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dmpo_jax.errors import InputError

# Where the starting pipeline lies may change; that it is the same one, its digest tells.
MAY_DIFFER = {"config.pipeline"}


class Checkpoints:
  """The checkpoints of one run, in `directory/<step>`.

  A checkpoint appears whole or not at all (orbax writes beside and renames). With the arrays it
  keeps a checksum of each, so that bytes that changed on disk are noticed, and the position in the
  data.

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
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
    self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

  def latest(self) -> int | None:
    """Step of the latest whole checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: dict) -> None:
    """Saves the state (a tree of arrays) and the data position (JSON) of a step.

    Raises:
      InputError: It could not be written; earlier checkpoints are as they were.
    """
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave({**data, "checksums": checksums(state)}),
    )
    try:
      self._manager.save(step, args=items)
    except OSError as error:
      raise InputError(f"cannot save step {step} in {self._directory}: {error}") from error

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
      if saved != wanted:
        raise InputError(_differences(path, saved, wanted))
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
    """Returns once the last save lies on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    self._manager.close()

  def _damaged(self, step: int, reason: str) -> str:
    earlier = [s for s in self._manager.all_steps() if s < step]
    rest = f"step {max(earlier)}" if earlier else "the start"
    return (
      f"checkpoint {self._directory / str(step)} is damaged: {reason}. Move that folder away to "
      f"continue from {rest}"
    )


def checksums(tree: Any) -> dict[str, int]:
  """CRC-32 of the bytes of each array in a tree, by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): zlib.crc32(
      np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    )
    for path, leaf in leaves
  }


def claim(workdir: pathlib.Path, identity: dict) -> None:
  """Writes who a work directory belongs to, or checks that it belongs to this run.

  Args:
    workdir: The run's directory; made if it is not there.
    identity: What makes the run this run: a nested dict of JSON values.

  Raises:
    InputError: The directory holds another run; the differing keys are listed.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / "run.json"
  identity = json.loads(json.dumps(identity))
  if not path.exists():
    write_whole(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
    return
  try:
    there = json.loads(path.read_text())
  except ValueError as error:
    raise InputError(f"{path} is not JSON ({error}); use another work directory") from error
  old, new = _flat(there), _flat(identity)
  lines = [
    f"  {key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
    for key in sorted((old.keys() | new.keys()) - MAY_DIFFER)
    if old.get(key, "absent") != new.get(key, "absent")
  ]
  if lines:
    raise InputError(
      f"{workdir} holds a different run:\n" + "\n".join(lines) + "\n"
      "Use another work directory, or delete this one to start over"
    )


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file that is there whole or not at all, whenever the process dies."""
  partial = path.with_suffix(".tmp")
  partial.write_text(text)
  os.replace(partial, path)


def _flat(tree: Any, prefix: str = "") -> dict:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    k: v for key, x in tree.items() for k, v in _flat(x, f"{prefix}.{key}".lstrip(".")).items()
  }


def _shapes(tree: Any) -> dict[str, tuple]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): (tuple(leaf.shape), str(leaf.dtype))
    for path, leaf in leaves
  }


def _differences(path: pathlib.Path, saved: dict, wanted: dict) -> str:
  lines = []
  for name in sorted(saved.keys() | wanted.keys()):
    if saved.get(name) != wanted.get(name):
      lines.append(
        f"  {name}: {saved.get(name, 'absent')} saved, {wanted.get(name, 'absent')} here"
      )
  shown = lines[:20] + [f"  ... and {len(lines) - 20} more"] * (len(lines) > 20)
  return f"checkpoint {path} is of another network or optimizer:\n" + "\n".join(shown)
