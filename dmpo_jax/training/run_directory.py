"""The work directory of a run: its lock, and run.json with the fingerprint of the run."""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from ml_collections import ConfigDict

from dmpo_jax import data
from dmpo_jax.common import atomic_folders, file_lock, files, leases, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import ABSENT, describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.training import config as configs

RUN_FILE = "run.json"
# Version of run.json, of the config keys in it and of the metrics beside it. Raise it when an older
# run can no longer be resumed or read.
FORMAT = 1
# Versions of the packages that computed the run, see `resume.record_versions`.
VERSIONS = "versions"
# Keys of run.json that may change: a pipeline may move; base_weights checks its content.
MUTABLE_KEYS = ("config.pipeline",)
DAMAGED = "put it back from a copy, or use another work directory"
# Seconds until a network file system shows a file that another host has written.
SYNC_TIMEOUT = 30.0


@contextlib.contextmanager
def run_lock(workdir: paths.Path, processes: Processes) -> Iterator[Callable[[], None]]:
  """Locks the work directory for the processes of one run.

  A run that is refused before it has written anything leaves no new directory.

  Args:
    workdir: Work directory; created if missing.
    processes: The processes of the run; all of them call this.

  Yields:
    A function that raises InputError once another run has locked the directory, which happens in a
    bucket to a run that gave no sign for long.

  Raises:
    InputError: Another run has locked the directory, or this process sees another directory than
      process 0.
  """
  path = workdir / "lock"
  made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
  new = [file for file in (workdir / "checkpoints", path) if not file.exists()]
  workdir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    held = None
    if processes.is_first:
      held = stack.enter_context(_lock(path))
      atomic_folders.recover(workdir)
    if processes.count > 1:
      token = uuid.uuid4().hex
      if processes.is_first:
        file_lock.write_note(path, token)
      _check_shared(path, processes.broadcast(token))
    try:
      yield held.check if isinstance(held, leases.Lease) else lambda: None
    except InputError:
      if processes.count == 1 and not (workdir / RUN_FILE).exists():
        _remove_empty([*new, *made])
      raise


def _lock(path: paths.Path) -> contextlib.AbstractContextManager[IO[str] | leases.Lease]:
  """The context of an open file, which this process has locked, or of a lease."""
  busy = f"another process is training in {path.parent}; wait, or use another"
  if not isinstance(path, pathlib.Path):
    return file_lock.lock(path, busy)
  while True:
    stream = path.open("a+")
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
        return stream
    except FileNotFoundError:
      path.parent.mkdir(parents=True, exist_ok=True)
    except BlockingIOError as error:
      stream.close()
      raise InputError(busy) from error
    except OSError as error:
      stream.close()
      raise OSError(
        error.errno, f"cannot lock ({error.strerror}); a run needs a disk with locks", str(path)
      ) from error
    stream.close()  # a run that was refused has removed the file meanwhile


def _remove_empty(paths: Iterable[paths.Path]) -> None:
  """Removes files and folders in order, as far as they are empty."""
  for path in paths:
    with contextlib.suppress(OSError):
      if path.is_dir():
        path.rmdir()
      elif path.stat().st_size == 0:
        path.unlink()


def _check_shared(path: paths.Path, token: str) -> None:
  """Raises unless the file shows the token that process 0 has written."""
  deadline = time.monotonic() + SYNC_TIMEOUT
  while file_lock.read_note(path) != token:
    if time.monotonic() > deadline:
      raise InputError(
        f"this process does not see the files that process 0 writes to {path.parent}: all "
        "processes of a run need the same work directory, on a shared file system"
      )
    time.sleep(0.2)


def check_base_pipeline(pipeline: str, workdir: paths.Path) -> None:
  """Raises if the base pipeline lies in the work directory, whose pipeline the run replaces.

  Args:
    pipeline: config.pipeline.
    workdir: Work directory.

  Raises:
    InputError: `pipeline` is a folder inside `workdir`.
  """
  if pipeline and paths.parse(pipeline).resolve().is_relative_to(workdir.resolve()):
    raise InputError(
      f"config.pipeline {pipeline!r} lies in the work directory {workdir}, whose pipeline the run "
      "replaces: after a resume its reference would be the trained policy; use another work "
      "directory, or copy the pipeline elsewhere"
    )


def read_run(workdir: paths.Path) -> dict[str, Any]:
  """Reads run.json.

  Args:
    workdir: Work directory of a run.

  Returns:
    Its content: "format", "config", and the rest of the fingerprint.

  Raises:
    InputError: The file is missing, is not valid, or has another format.
  """
  path = workdir / RUN_FILE
  if not path.is_file():
    raise InputError(f"{workdir} is no work directory of a run: it has no {RUN_FILE}")
  content = files.read_json(path, advice=DAMAGED)
  config, version = content.get("config"), content.get("format")
  if not isinstance(config, dict):
    raise InputError(f"{path} is no valid {RUN_FILE}: it has no config; {DAMAGED}")
  if version is None:
    renames = _renames(config)
    raise InputError(
      f"{path} was written by a version of dmpo_jax in which config keys and metrics had other "
      "names. Use another work directory; to export its checkpoints, use the version that wrote "
      "them" + ("\nRenamed in it:\n" + "\n".join(renames) if renames else "")
    )
  if version != FORMAT:
    raise InputError(
      f"{path} has format {version!r}, this version of dmpo_jax reads format {FORMAT}; use the "
      "version that wrote it, or another work directory"
    )
  if isinstance(config.get("reference"), bool):  # of a time when the reference was always frozen
    config["reference"] = configs.default().reference.to_dict()
  return content


def run_config(workdir: paths.Path) -> ConfigDict:
  """The config of a run; keys that it is too old to have are at their defaults.

  Args:
    workdir: Work directory of a run.

  Returns:
    A checked config.

  Raises:
    InputError: See `read_run`; or a key is unknown, or a value has the wrong type or range.
  """
  path, stored = workdir / RUN_FILE, read_run(workdir)["config"]
  with files.reading(path, "record of a run", advice=DAMAGED), files.located(path):
    defaults = configs.default()
    # Keys that have no default, and that run.json lacks because they may change.
    defaults.num_steps = defaults.checkpoint.every = 1
    return configs.check(ConfigDict({**defaults.to_dict(), **stored}))


def _renames(config: dict[str, Any]) -> list[str]:
  """Lines "former -> new" for the renamed keys and data sets in a config."""
  lines = []
  for old, new in configs.RENAMED.items():
    *parents, key = old.split(".")
    section = functools.reduce(
      lambda value, part: value.get(part) if isinstance(value, dict) else None, parents, config
    )
    if isinstance(section, dict) and key in section:
      lines.append(f"  config.{old} -> config.{new}")

  def section_of(*keys: str) -> dict[str, Any]:
    value: Any = config
    for key in keys:
      value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}

  for prefix, section in (
    ("config.data", section_of("data")),
    ("config.health.data", section_of("health", "data")),
  ):
    if section.get("name") in list(data.RENAMED):
      name = section["name"]
      lines.append(f"  {prefix}.name {name!r} -> {data.RENAMED[name]!r}")
    lines += [
      f"  {prefix}.{old} -> {prefix}.{new}" for old, new in data.RENAMED.items() if old in section
    ]
  return lines


def check_fingerprint(workdir: paths.Path, fingerprint: dict[str, Any]) -> None:
  """Raises if the work directory belongs to another run; a new directory passes.

  Args:
    workdir: Work directory.
    fingerprint: Everything that makes the run this run: "config" without the keys that may change
      between starts, "data", "base_weights" and others; a nested dict of JSON values.

  Raises:
    InputError: run.json has another fingerprint (the message lists the differences) or cannot be
      read, or there are checkpoints without run.json.
  """
  path = workdir / RUN_FILE
  if not path.exists():
    if any((workdir / "checkpoints").glob("[0-9]*")):
      raise InputError(
        f"{workdir} holds checkpoints without the {RUN_FILE} that names the base weights of their "
        "run, which are its reference; put it back, or use another work directory"
      )
    return
  different = differences(read_run(workdir), {"format": FORMAT, **fingerprint})
  different = {
    key: (stored, value)
    for key, (stored, value) in different.items()
    if key.split(".")[0] != VERSIONS
    and key not in MUTABLE_KEYS
    and not (stored is ABSENT and _is_default(key, value))
  }
  if different:
    note = "base_weights: the reference would not be the initial policy\n"
    raise InputError(
      f"{workdir} holds a different run:\n"
      + describe(different)
      + "\n"
      + note * ("base_weights" in different)
      + "Use another work directory, or delete this one to start over"
    )


def _is_default(key: str, value: Any) -> bool:
  """Whether a dotted key of run.json is a config key with its default, which older runs lack."""
  section, *parts = key.split(".")
  default: Any = configs.default().to_dict() if section == "config" else {}
  for part in parts:
    default = default.get(part, ABSENT) if isinstance(default, dict) else ABSENT
  return default is not ABSENT and not differences({"": default}, {"": value})


def write_fingerprint(workdir: paths.Path, fingerprint: dict[str, Any]) -> None:
  """Writes run.json into a new work directory, or checks the one that is there.

  Args:
    workdir: Work directory; created if missing.
    fingerprint: See `check_fingerprint`.

  Raises:
    InputError: The directory belongs to another run, see `check_fingerprint`.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  check_fingerprint(workdir, fingerprint)
  path = workdir / RUN_FILE
  if not path.exists():
    content = {"format": FORMAT, **fingerprint}
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
