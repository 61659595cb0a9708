"""A folder that any number of hosts write shard by shard, and that resumes after a kill.

The folder holds plan.json, which is written first and must be the same at each start; a working
folder with unfinished files and a completion marker for each finished shard; and the files of the
finished shards. The last file to appear, `final`, says that the data set is complete.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError

PLAN = "plan.json"


class ResumableFolder(NamedTuple):
  """The state of such a folder on disk.

  Attributes:
    out: The folder, on a disk that all hosts share.
    working: The working folder in it.
    final: The file in it that appears last.
    noun: The work, for messages: "conversion".
  """

  out: pathlib.Path
  working: pathlib.Path
  final: pathlib.Path
  noun: str

  def start(self, plan: Mapping[str, Any]) -> bool:
    """Writes the plan, or compares it with the stored one.

    Args:
      plan: JSON values that decide every byte of the result. `plan["version"]` is the version of
        the format.

    Returns:
      Whether the folder is complete already.

    Raises:
      InputError: The folder holds something else, or its plan differs.
    """
    path, out = self.out / PLAN, self.out
    foreign = out.exists() and (not out.is_dir() or any(p != self.working for p in out.iterdir()))
    if foreign and not path.exists():
      raise InputError(f"{out} exists and holds no {self.noun}; choose another folder")
    self.working.mkdir(parents=True, exist_ok=True)
    plan = json.loads(json.dumps(plan))
    if not path.exists():
      write_atomically(path, to_json(plan), scratch=self.working)
    stored = read_plan(out)
    if stored.get("version") != plan["version"]:
      raise InputError(
        f"{out} holds a {self.noun} by another version of dmpo-jax, which cannot be resumed "
        f"(format {stored.get('version', 'unknown')}, now {plan['version']}); choose another "
        "folder, or delete this one"
      )
    if different := differences(stored, plan):
      raise InputError(
        f"{out} holds another {self.noun}; resume it with the same options and unchanged input, or "
        f"choose another folder:\n{describe(different)}"
      )
    if self.is_complete():
      self.remove_working_folder()
    return self.is_complete()

  def is_complete(self) -> bool:
    """Whether the data set is finished."""
    return self.final.exists()

  def marker(self, shard: int) -> pathlib.Path:
    """The completion marker of a shard."""
    return self.working / f"{shard:06d}.json"

  def is_done(self, shard: int) -> bool:
    """Whether a shard is finished."""
    return self.marker(shard).exists()

  def mark_done(self, shard: int, result: Mapping[str, Any]) -> None:
    """Writes the completion marker of a shard; its files must be complete.

    Args:
      shard: Number of the shard.
      result: JSON values for `results`.
    """
    text = json.dumps(result, sort_keys=True)
    write_atomically(self.marker(shard), text, scratch=self.working)

  def results(self, count: int) -> list[dict]:
    """The results that the shards' completion markers hold, in order."""
    return [json.loads(self.marker(i).read_text(encoding="utf-8")) for i in range(count)]

  def missing(self, count: int) -> list[int]:
    """Numbers of the shards that are not finished."""
    return [i for i in range(count) if not self.is_done(i)]

  def finish(
    self, count: int, complete: Callable[[], dict], read: Callable[[pathlib.Path], dict]
  ) -> dict | None:
    """Completes the data set if all shards are finished.

    Args:
      count: Number of shards.
      complete: Makes the data set from the finished shards and writes `final`. It may be killed at
        any point and called again.
      read: Reads the result of `complete` from a complete folder.

    Returns:
      The result of `complete`, or None while shards of other hosts are missing.
    """
    try:
      if not self.missing(count):
        return complete()
    except FileNotFoundError:
      if not self.is_complete():
        raise
    # Two hosts may see the last shard at once: the slower one loses the files that it works on to
    # the other one, which has completed the data set.
    return read(self.out) if self.is_complete() else None

  def remove_working_folder(self) -> None:
    """Removes the working folder of a complete data set."""
    shutil.rmtree(self.working, ignore_errors=True)


def read_plan(out: pathlib.Path) -> dict:
  """The plan of a folder.

  Raises:
    InputError: It is damaged.
  """
  path = pathlib.Path(out) / PLAN
  try:
    plan = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{path} is damaged: {error}; choose another folder") from error
  if not isinstance(plan, dict):
    raise InputError(f"{path} is damaged: it holds no object; choose another folder")
  return plan


def to_json(value: Any) -> str:
  """JSON text of equal bytes for equal values."""
  return json.dumps(value, indent=1, sort_keys=True) + "\n"
