"""Kills a process (SIGKILL) before each line that it executes in dmpo_jax.common, in turn.

Run as a program: python -m tests.common.kills FOLDER {exchange,renames,recovery}
"""

import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable

from dmpo_jax.common import atomic_folders
from dmpo_jax.common.atomic_folders import folder_atomically, recover

FILES = (os.path.dirname(atomic_folders.__file__), shutil.__file__)


def killed_at(line: int, work: Callable[[], object]) -> bool:
  """Runs a function in a child process, which kills itself before its line number `line`.

  Only lines of dmpo_jax.common and of shutil count.

  Returns:
    False if the function ended before.
  """
  child = os.fork()
  if child:
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0
  left = line

  def trace(frame, event, argument):
    nonlocal left
    if not frame.f_code.co_filename.startswith(FILES):
      return None
    if event == "line":
      left -= 1
      if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace

  try:
    sys.settrace(trace)
    work()
    os._exit(0)
  finally:
    os._exit(1)


def fill(folder: pathlib.Path, text: str) -> None:
  """Writes a folder of two files, which must stay together."""
  (folder / "below").mkdir(parents=True)
  (folder / "one").write_text(text)
  (folder / "below" / "two").write_text(text)


def replace(target: pathlib.Path) -> None:
  """Replaces a folder by a new one."""
  with folder_atomically(target) as new:
    fill(new, "new")


def content(folder: pathlib.Path) -> str | None:
  """The text of both files, or None without the folder."""
  if not folder.exists():
    return None
  names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
  assert names == {"one", "below", "below/two"}, names
  texts = {(folder / name).read_text() for name in ("one", "below/two")}
  assert len(texts) == 1, texts
  return texts.pop()


def kill_replacements(root: pathlib.Path, *, exchange: bool) -> dict[str | None, int]:
  """Kills a replacement at each line; the next command must find or restore a whole folder.

  Returns:
    Content of the target directly after the kill -> number of kills.
  """
  seen: dict[str | None, int] = {}
  for line in range(10_000):
    target = root / str(line) / "out"
    fill(target, "old")
    if not killed_at(line, lambda: replace(target)):  # noqa: B023
      return seen
    state = content(target)
    assert state is not None or not exchange
    seen[state] = seen.get(state, 0) + 1
    recover(target.parent)
    assert content(target) in ("old", "new"), line
    assert os.listdir(target.parent) == ["out"], (line, os.listdir(target.parent))
  raise AssertionError("it never ended")


def kill_recoveries(root: pathlib.Path) -> dict[str | None, int]:
  """Kills replacements where the target is missing, then the recovery at each line, and repeats."""
  seen: dict[str | None, int] = {}
  for line in range(10_000):
    for again in range(10_000):
      target = root / f"{line}-{again}" / "out"
      fill(target, "old")
      if not killed_at(line, lambda: replace(target)):  # noqa: B023
        return seen
      if target.exists():
        break
      if not killed_at(again, lambda: recover(target.parent)):  # noqa: B023
        break
      state = content(target)
      seen[state] = seen.get(state, 0) + 1
      recover(target.parent)
      assert content(target) in ("old", "new"), (line, again)
      assert os.listdir(target.parent) == ["out"], (line, again)
  raise AssertionError("it never ended")


if __name__ == "__main__":
  os.fsync = lambda descriptor: None  # slow, and nothing that a kill depends on
  folder, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
  if mode == "recovery":
    FILES = FILES[:1]
  if mode != "exchange":
    atomic_folders._renameat2 = lambda: None  # a system without it
  kills = (
    kill_recoveries(folder)
    if mode == "recovery"
    else kill_replacements(folder, exchange=mode == "exchange")
  )
  print(kills)
