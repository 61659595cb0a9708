"""Kills writers of a pipeline folder (SIGKILL) at random moments, one after another.

Run as a program: python -m tests.interop.export_kills PIPELINE FOLDER KILLS
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import sys
import time
from collections import Counter

import jax
import numpy as np

from dmpo_jax import interop


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Name and bytes of all files in a folder."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write(target: pathlib.Path, pipeline: interop.Pipeline) -> int:
  """Starts a process that writes a pipeline, and returns its id."""
  child = os.fork()
  if child == 0:
    with contextlib.suppress(BaseException):
      interop.save_pipeline(target, pipeline)
      os._exit(0)
    os._exit(1)
  return child


def main(source: str, folder: str, kills: str) -> None:
  """Prints how many kills found the writer in which state."""
  one = interop.load_pipeline(source)
  one = dataclasses.replace(one, params=jax.tree.map(np.asarray, one.params))
  other = dataclasses.replace(one, params=jax.tree.map(lambda x: x + x.dtype.type(1), one.params))
  parent, pipelines = pathlib.Path(folder), [one, other]
  target, whole = parent / "out", []
  start = time.monotonic()
  for pipeline in pipelines:
    assert os.waitpid(write(target, pipeline), 0)[1] == 0
    whole.append(contents(target))
  seconds = (time.monotonic() - start) / 2
  chance, seen = random.Random(0), Counter()
  while seen["before the exchange"] + seen["after the exchange"] < int(kills):
    before = whole.index(contents(target))
    child = write(target, pipelines[1 - before])
    time.sleep(chance.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    done = os.waitpid(child, 0)[1] == 0
    now = contents(target)
    assert now in whole, "a part of a pipeline"
    moved = "after" if now != whole[before] else "before"
    seen["ended before the kill" if done else f"{moved} the exchange"] += 1
    left = [name for name in os.listdir(parent) if name != "out"]
    seen["left a hidden folder"] += bool(left)
    assert len(left) <= 1, "the folder of an earlier writer"
  assert os.waitpid(write(target, one), 0)[1] == 0
  assert os.listdir(parent) == ["out"]
  print(dict(seen))


if __name__ == "__main__":
  main(*sys.argv[1:])
