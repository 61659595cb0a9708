"""Whose a work directory is: one run's, and while it trains, its processes' alone."""

import contextlib
import fcntl
import json
import pathlib
import time
import uuid
from collections.abc import Iterator

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.processes import Processes

# Where the starting pipeline lies may change; that it is the same one, its digest tells.
MAY_DIFFER = {"config.pipeline"}
# Network file systems show what another host wrote after some seconds.
PATIENCE = 30.0


@contextlib.contextmanager
def only_user_of(workdir: pathlib.Path, processes: Processes) -> Iterator[None]:
  """Holds a lock on the work directory, for all processes of a run.

  Args:
    workdir: Made if it is not there.
    processes: Of the run.

  Raises:
    InputError: Another run trains there, or this process sees another directory than the first.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / "lock"
  with contextlib.ExitStack() as held:
    if processes.is_first:
      lock = held.enter_context(path.open("a+"))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise InputError(
          f"another process is training in {workdir}; wait, or use another"
        ) from error
    if processes.count > 1:
      token = uuid.uuid4().hex
      if processes.is_first:
        path.write_text(token)
      _check_seen(path, processes.broadcast(token))
    yield


def _check_seen(path: pathlib.Path, token: str) -> None:
  until = time.monotonic() + PATIENCE
  while not path.exists() or path.read_text() != token:
    if time.monotonic() > until:
      raise InputError(
        f"what process 0 writes to {path.parent} is not seen by this process: all processes of a "
        "run need the same work directory, on a file system that they share"
      )
    time.sleep(0.2)


def check_outside(pipeline: str, workdir: pathlib.Path) -> None:
  """Refuses a starting pipeline that the run itself would replace.

  Args:
    pipeline: config.pipeline.
    workdir: Of the run.

  Raises:
    InputError: The one lies in the other.
  """
  if pipeline and pathlib.Path(pipeline).resolve().is_relative_to(workdir.resolve()):
    raise InputError(
      f"config.pipeline {pipeline!r} lies in the work directory {workdir}, whose pipeline the run "
      "replaces: started again, its reference would be what it had trained; use another work "
      "directory, or copy the pipeline elsewhere"
    )


def check_owner(workdir: pathlib.Path, identity: dict) -> None:
  """Refuses the directory of another run, and checkpoints of which nobody knows the start.

  Args:
    workdir: The run's directory.
    identity: See `claim`, which writes it where there is none yet.

  Raises:
    InputError: The directory cannot be this run's.
  """
  if (workdir / "run.json").exists():
    claim(workdir, identity)
  elif any((workdir / "checkpoints").glob("[0-9]*")):
    raise InputError(
      f"{workdir} holds checkpoints without the run.json that says which pipeline their run "
      "started from, which is its reference; put it back, or use another work directory"
    )


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
  if not path.exists():
    write_atomically(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
    return
  try:
    there = json.loads(path.read_text())
  except ValueError as error:
    raise InputError(f"{path} is not JSON ({error}); use another work directory") from error
  different = differences(there, identity)
  for key in MAY_DIFFER:
    different.pop(key, None)
  if different:
    raise InputError(
      f"{workdir} holds a different run:\n"
      + describe(different)
      + "\n"
      + "start: what the pipeline holds; the reference would not be the initial policy\n"
      * ("start" in different)
      + "Use another work directory, or delete this one to start over"
    )
