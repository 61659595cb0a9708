"""Locks on names in buckets, which a process that died loses.

A bucket has no locks. A lease on NAME is the object NAME/NUMBER with the highest number: it is
created only if no one else has created it, and its holder writes it again every `RENEW` seconds. A
lease that was not renewed for `EXPIRY` seconds is lost, and the next process creates the next
number. Ages are differences of the storage's own times, so clocks of machines do not matter. On one
machine a dead holder is known by its process, without waiting.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from dmpo_jax.common.bucket import BucketPath
from dmpo_jax.common.bucket_requests import seconds_of
from dmpo_jax.errors import InputError

# Seconds between renewals, seconds after which a lease is lost, and seconds between looks at it.
RENEW, EXPIRY, POLL = 10.0, 60.0, 2.0
LOGGER = logging.getLogger(__name__)


class Lease:
  """A lease that this process holds.

  Args:
    name: What is leased.
    number: Number of the lease.
    token: Text that no other lease has.
  """

  def __init__(self, name: BucketPath, number: int, token: str):
    self._path, self._name, self._number = _object(name, number), name, number
    self._content = {"token": token, "process": _process(), "renewals": 0}
    self._lost, self._end = False, threading.Event()
    self._checked = time.monotonic()
    self._thread = threading.Thread(target=self._renew_until_end, daemon=True, name="lease")

  def start(self) -> None:
    """Creates the object and begins to renew it; raises FileExistsError if another was faster."""
    self._path.create(_encode(self._content))
    self._checked = time.monotonic()
    self._thread.start()

  def check(self) -> None:
    """Raises InputError if another process holds the lease now."""
    if time.monotonic() - self._checked > EXPIRY / 2 and not self._lost:
      self._renew()
    if self._lost:
      raise InputError(
        f"{self._name}: another process has taken this one's place, which gave no sign for "
        f"{EXPIRY:.0f} s; nothing more is written"
      )

  def end(self, *, forget: bool) -> None:
    """Gives the lease back; `forget` removes its object."""
    self._end.set()
    self._thread.join()
    with contextlib.suppress(OSError, InputError):
      if not self._lost and forget:
        self._path.unlink(missing_ok=True)
      elif not self._lost:
        # The object stays: numbers never begin again, or a process that was stopped for a long time
        # could take another's lease for its own.
        self._path.write_bytes(_encode({**self._content, "ended": True}))

  def _renew_until_end(self) -> None:
    while not self._end.wait(RENEW) and not self._lost:
      try:
        self._renew()
      except Exception as error:  # the storage does not answer: no one else can take it either
        LOGGER.warning("%s: cannot renew the lock (%s)", self._name, error)

  def _renew(self) -> None:
    numbers = _numbers(self._name)
    stored = _read(self._path)
    if max(numbers, default=0) != self._number or stored.get("token") != self._content["token"]:
      self._lost = True
      return
    self._content = {**self._content, "renewals": self._content["renewals"] + 1}
    self._path.write_bytes(_encode(self._content))
    self._checked = time.monotonic()


@contextlib.contextmanager
def lease(name: BucketPath, busy: str, *, wait: bool = False) -> Iterator[Lease]:
  """Context in which this process alone holds a name.

  Args:
    name: The name; no file.
    busy: Message if another process holds it.
    wait: Whether to wait for another process that is alive.

  Yields:
    The lease. Its `check` raises once another process has taken it.

  Raises:
    InputError: Another process holds the lease and renews it; or the bucket cannot be used.
    OSError: The storage does not answer.
  """
  while True:
    number = max(_numbers(name), default=0)
    if number:
      _wait_for_end(_object(name, number), busy, wait)
    taken = Lease(name, number + 1, secrets.token_hex(16))
    try:
      taken.start()
      break
    except FileExistsError:
      continue
  for old in _numbers(name):
    if old <= number:
      _object(name, old).unlink(missing_ok=True)
  try:
    yield taken
  except InputError:
    taken.end(forget=number == 0)
    raise
  except BaseException:
    taken.end(forget=False)
    raise
  taken.end(forget=False)


def _wait_for_end(path: BucketPath, busy: str, wait: bool) -> None:
  """Returns when a lease has ended or is lost; raises InputError once it is renewed."""
  first, start, warned = None, time.monotonic(), False
  age = 0.0
  while True:
    info = path.info()
    content = _read(path)
    if info is None or content.get("ended") or _is_dead(content.get("process")):
      return
    if first is None:
      first, age = content, _age(path, info)
    elif content != first and not wait:
      raise InputError(busy)
    elif content != first:
      first, age, start = content, 0.0, time.monotonic()
    if age + time.monotonic() - start > EXPIRY:
      return
    if not warned:
      LOGGER.info("%s: is its process alive? It has %.0f s to show it", path.parent, EXPIRY)
      warned = True
    time.sleep(POLL)


def _age(path: BucketPath, info: dict[str, Any]) -> float:
  """Seconds since an object was written, by the storage's clock."""
  probe = path.parent / f"clock-{secrets.token_hex(8)}"
  probe.write_bytes(b"")
  try:
    return max(0.0, seconds_of(probe.info() or {}) - seconds_of(info))
  finally:
    probe.unlink(missing_ok=True)


def _numbers(name: BucketPath) -> list[int]:
  return [int(file) for file in name.find() if file.isdigit()]


def _object(name: BucketPath, number: int) -> BucketPath:
  return name / f"{number:06d}"


def _read(path: BucketPath) -> dict[str, Any]:
  try:
    content = json.loads(path.read_bytes())
  except (FileNotFoundError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _encode(content: dict[str, Any]) -> bytes:
  return json.dumps(content, sort_keys=True).encode()


@functools.cache
def _machine() -> list[Any]:
  """Boot id and process namespace, equal for processes that see each other; empty if unknown."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [boot, os.stat("/proc/self/ns/pid").st_ino]
  except OSError:
    return []


def _process() -> list[Any]:
  """This process among all; a later one with the same id has another time of start."""
  return [*_machine(), os.getpid(), _start_time(os.getpid())]


def _start_time(process: int) -> str | None:
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return None
  state, *fields = text.rpartition(")")[2].split()
  return None if state in "ZX" else fields[18]  # a zombie is dead


def _is_dead(process: Any) -> bool:
  """Whether a process of this machine has ended; False where that is not known."""
  machine = _machine()
  return (
    isinstance(process, list)
    and len(process) == len(machine) + 2
    and bool(machine)
    and process[:-2] == machine
    and _start_time(process[-2]) != process[-1]
  )
