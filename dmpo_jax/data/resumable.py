"""A folder that any number of hosts write shard by shard, and that resumes after a kill.

The folder holds plan.json, which is written first and must be the same at each start; a working
folder with unfinished files, locks, and a completion marker for each finished shard, which has the
checksums of its files; and the files of the finished shards. The last file to appear, `final`, says
that the data set is complete.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dmpo_jax.common import files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.common.file_lock import lock
from dmpo_jax.data.pairs import check_text
from dmpo_jax.errors import InputError, short

PLAN = "plan.json"
FINISH = "finish.lock"
MAX_HOSTS = 1_000_000
LOGGER = logging.getLogger(__name__)


class Fingerprint(NamedTuple):
  """Size and SHA-256 of a file."""

  bytes: int
  sha256: str


def fingerprint(path: paths.Path) -> Fingerprint:
  """The fingerprint of a file."""
  with path.open("rb") as stream:
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Fingerprint(stream.seek(0, 2), digest)


def matches(path: paths.Path, expected: Fingerprint) -> bool:
  """Whether a file exists and is the one of that fingerprint.

  Of an object in a bucket the size is compared: storage checks the bytes of an upload and keeps
  their checksum, and reading all objects again would take as long as writing them.
  """
  if not path.is_file() or paths.size(path) != expected.bytes:
    return False
  return paths.is_url(path) or fingerprint(path) == expected


class ResumableFolder(NamedTuple):
  """The state of such a folder on disk.

  Attributes:
    out: The folder, on a disk that all hosts share or in a bucket.
    working: The working folder in it.
    final: The file in it that appears last.
    noun: The work, for messages: "conversion".
  """

  out: paths.Path
  working: paths.Path
  final: paths.Path
  noun: str

  @contextlib.contextmanager
  def session(self, plan: Mapping[str, Any], *, host: int = 0, hosts: int = 1) -> Iterator[bool]:
    """The work of one host, which no other process may do at the same time.

    If the work is refused (InputError) before this host finished a shard of a new folder, the
    folder is left as it was.

    Args:
      plan: See `start`.
      host: Number of this host.
      hosts: Number of hosts that share the work.

    Yields:
      Whether the folder is complete already.

    Raises:
      InputError: See `start`; or the host's number is out of range; or another process does the
        work of this host, or works with another number of hosts.
    """
    check_text("the path of the output folder", str(self.out))  # libraries take no other
    check_hosts(host, hosts)
    self._check(plan)
    if self.is_complete():
      yield self.start(plan)
      return
    created = [p for p in (self.working, self.out, *self.out.parents) if not p.exists()]
    is_new = not (self.out / PLAN).exists()
    with contextlib.ExitStack() as locks:
      self._lock(locks, host, hosts)
      try:
        yield self.start(plan)
        if self.is_complete():
          locks.close()  # in a bucket, a lease that ends leaves an object
          self.remove_working_folder()
      except InputError:
        if is_new and hosts == 1 and self.working in created and not any(self._markers()):
          (self.out / PLAN).unlink(missing_ok=True)
          self.remove_working_folder()
          with contextlib.suppress(OSError):  # not empty
            for folder in created[1:]:
              folder.rmdir()
        raise

  def _lock(self, locks: contextlib.ExitStack, host: int, hosts: int) -> None:
    """Locks this host's part of the work until `locks` end."""
    part = f" as host {host} of {hosts}" if hosts > 1 else ""
    busy = f"another process is writing the {self.noun} {self.out}{part}; wait until it ends"
    if paths.is_url(self.out):  # a bucket has no shared locks; a shard that two make is one file
      locks.enter_context(lock(self.working / f"host-{host}.lock", busy))
      return
    self.working.mkdir(parents=True, exist_ok=True)
    path, text = self.working / "hosts.lock", str(hosts)
    try:
      common = locks.enter_context(lock(path, ""))
    except InputError:
      common = locks.enter_context(lock(path, "", shared=True, wait=True))
    else:  # the first one
      common.truncate(0)
      common.write(text)
      common.flush()
      with contextlib.suppress(OSError):  # a disk without locks
        fcntl.flock(common, fcntl.LOCK_SH)
    common.seek(0)
    if (others := common.read()) != text:
      raise InputError(
        f"other processes are writing the {self.noun} {self.out} as {others} hosts, not as "
        f"{hosts}; give all of them the same --hosts"
      )
    locks.enter_context(lock(self.working / f"host-{host}.lock", busy))

  def start(self, plan: Mapping[str, Any]) -> bool:
    """Writes the plan, or compares it with the stored one.

    Args:
      plan: JSON values that decide every byte of the result. `plan["version"]` is the version of
        the format.

    Returns:
      Whether the folder is complete already.

    Raises:
      InputError: The folder holds something else, or its plan differs. Nothing is written then.
    """
    self._check(plan)
    path, text = self.out / PLAN, to_json(_plain(plan))
    if self.is_complete():
      self.remove_working_folder()
      return True
    self.working.mkdir(parents=True, exist_ok=True)
    # The stored plan may have the same values in other words, if a byte of it was damaged.
    if not path.exists() or path.read_bytes() != text.encode():
      write_atomically(path, text, scratch=self.working)
      self._check(plan)  # another host may have been faster
    return self.is_complete()

  def _check(self, plan: Mapping[str, Any]) -> None:
    """Raises InputError if the folder holds something else than the work of this plan."""
    path, out, plan = self.out / PLAN, self.out, _plain(plan)
    foreign = out.exists() and (not out.is_dir() or any(p != self.working for p in out.iterdir()))
    if not path.exists():
      if foreign:
        raise InputError(f"{out} exists and holds no {self.noun}; choose another folder")
      return
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

  def is_complete(self) -> bool:
    """Whether the data set is finished."""
    return self.final.exists()

  def marker(self, shard: int) -> paths.Path:
    """The completion marker of a shard."""
    return self.working / f"{shard:06d}.json"

  def _markers(self) -> Iterator[paths.Path]:
    return self.working.glob("[0-9]" * 6 + ".json")

  def is_done(self, shard: int) -> bool:
    """Whether a shard is finished."""
    return self.marker(shard).exists()

  def mark_done(
    self, shard: int, result: Mapping[str, Any], made: Mapping[str, Fingerprint]
  ) -> None:
    """Writes the completion marker of a shard; its files must be complete.

    Args:
      shard: Number of the shard.
      result: JSON values for `results`.
      made: Fingerprints of the shard's files by path relative to `out`.
    """
    marker = {"result": _plain(result), "files": {n: list(f) for n, f in made.items()}}
    text = json.dumps(marker | {"sha256": _checksum(marker)}, sort_keys=True)
    write_atomically(self.marker(shard), text, scratch=self.working)

  def unfinished(
    self,
    shards: Iterable[int],
    restart: Callable[[Iterable[int]], Any] | None = None,
  ) -> list[int]:
    """Numbers of the shards that this host has to make, the damaged ones among them.

    No host completes the data set meanwhile: it would move or remove files that are being checked,
    and a shard whose completion is taken back would be missing from it.

    Args:
      shards: Numbers of this host's shards.
      restart: Takes back the completion of damaged ones; None: `restart_damaged`.
    """
    shards = list(shards)
    if not any(map(self.is_done, shards)) and not self.is_complete():
      return shards  # nothing to check, and none can complete the data set without them
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(lock(self.working / FINISH, "", wait=True))
      except FileNotFoundError:  # the host that completed the data set removed the working folder
        if not self.is_complete():
          raise
      if self.is_complete():
        return []
      (restart or self.restart_damaged)(shards)
      return [i for i in shards if not self.is_done(i)]

  def restart_damaged(
    self,
    shards: Iterable[int],
    is_whole: Callable[[paths.Path, Fingerprint], bool] = matches,
    remove: Callable[[int], None] = lambda shard: None,
  ) -> list[int]:
    """Takes back the completion of finished shards whose files are damaged or gone.

    Args:
      shards: Numbers of the shards to check.
      is_whole: Whether a file of a shard is there, see `matches`.
      remove: Called with a damaged shard after it is no longer marked as finished.

    Returns:
      Numbers of the shards that must be made again.
    """
    damaged = []
    for shard in filter(self.is_done, shards):
      try:
        made = self._read_marker(shard)["files"]
        whole = all(is_whole(self.out / name, Fingerprint(*f)) for name, f in made.items())
      except InputError:
        whole = False
      if not whole:
        LOGGER.warning("a file of shard %d of %s is damaged; it is made again", shard, self.out)
        self.marker(shard).unlink(missing_ok=True)
        remove(shard)
        damaged.append(shard)
    return damaged

  def _read_marker(self, shard: int) -> dict:
    """Raises InputError if the marker is damaged."""
    path, advice = self.marker(shard), "run the same command again"
    marker = files.read_json(path, advice=advice)
    if marker.pop("sha256", None) != _checksum(marker):
      raise InputError(f"{path} is damaged; {advice}")
    return marker

  def check_made(self, shard: int, path: paths.Path) -> None:
    """Raises InputError unless a file is as the finished shard that made it left it."""
    made = self._read_marker(shard)["files"].get(path.relative_to(self.out).as_posix())
    if made is None or not matches(path, Fingerprint(*made)):
      raise InputError(
        f"{path} of shard {shard} is missing or damaged; run the command of the host that made it "
        "again, which makes it anew"
      )

  def results(self, count: int) -> list[dict]:
    """The results that the shards' completion markers hold, in order.

    Raises:
      InputError: A marker is damaged.
    """
    return [self._read_marker(i)["result"] for i in range(count)]

  def missing(self, count: int) -> list[int]:
    """Numbers of the shards that are not finished; none in a complete folder."""
    return [] if self.is_complete() else [i for i in range(count) if not self.is_done(i)]

  def finish(
    self, count: int, complete: Callable[[], dict], read: Callable[[paths.Path], dict]
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
        # One host completes the data set, the others wait for it.
        with lock(self.working / FINISH, "", wait=True):
          if not self.missing(count) and not self.is_complete():
            return complete()
    except FileNotFoundError:  # the host that completed the data set removed the working folder
      if not self.is_complete():
        raise
    return read(self.out) if self.is_complete() else None

  def remove_working_folder(self) -> None:
    """Removes the working folder of a complete data set."""
    paths.remove_tree(self.working)


def read_plan(out: paths.Path) -> dict:
  """The plan of a folder.

  Raises:
    InputError: It is damaged.
  """
  return files.read_json(paths.parse(out) / PLAN, advice="choose another folder")


def check_hosts(host: int, hosts: int) -> None:
  """Raises InputError unless `host` is one of the numbers 0 to hosts - 1."""
  if not (1 <= hosts <= MAX_HOSTS and 0 <= host < hosts):
    raise InputError(
      f"host {short(host)} of {short(hosts)}: hosts count from 0, and there are 1 to {MAX_HOSTS:,}"
    )


def shards(out: paths.Path) -> int:
  """Number of shards in the plan of a folder.

  Raises:
    InputError: The plan is damaged.
  """
  count = read_plan(out).get("shards")
  if isinstance(count, bool) or not isinstance(count, int) or count < 0:
    raise InputError(f"{paths.parse(out) / PLAN} is damaged: shards is {short(count)}")
  return count


def _plain(values: Mapping[str, Any]) -> dict:
  """The values as JSON has them."""
  return json.loads(json.dumps(values))


def _checksum(marker: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def to_json(value: Any) -> str:
  """JSON text of equal bytes for equal values."""
  return json.dumps(value, indent=1, sort_keys=True) + "\n"
