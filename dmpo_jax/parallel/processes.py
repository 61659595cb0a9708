"""The processes of one run: how they find each other, agree, stop together and end together.

They talk over the key-value store of jax's coordination service, which process 0 hosts. The service
also watches over them: a process that does not send heartbeats is lost, and jax then ends the
others (SIGABRT), for a collective that waits for it would never end.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # its key-value store has no public name

from dmpo_jax.errors import InputError, flush, say

# Seconds between looks at what others have said; how long process 0, which hosts the service, waits
# for others to have heard why a run ends; and how long one waits for what surely comes, or else jax
# ends this process.
POLL, LINGER, WAIT = 0.5, 15.0, 24 * 3600
# Folders of the store; in the first one, what all look for.
TOLD, AT, GONE = (f"dmpo_jax/{name}/" for name in ("told", "at", "gone"))
STOP, FAILED = f"{TOLD}stop", f"{TOLD}failed"


class Peers:
  """The processes of a run as one of them sees them; without arguments, a process by itself.

  Whoever calls `share`, `same` and `wait` does so in all processes and in one order.

  Args:
    client: Of jax's coordination service.
    index: This process, 0 to count - 1.
    count: How many there are.
  """

  def __init__(self, client: Any = None, index: int = 0, count: int = 1):
    self.index, self.count = index, count
    self._client, self._calls = client, 0
    self._asked = False
    self._next, self._stop_at, self._published = 0, None, False
    self._deciding = threading.Lock()
    if count > 1:
      threading.Thread(target=self._watch, daemon=True).start()

  @property
  def first(self) -> bool:
    """Whether this is the process that writes the files of the run."""
    return self.index == 0

  def share(self, value: Any) -> Any:
    """The first process's value, in all of them; the others' are not looked at."""
    if self.count == 1:
      return value
    key = self._key()
    if self.first:
      self._client.key_value_set(key, json.dumps(value))
      return value
    return json.loads(self._client.blocking_key_value_get(key, WAIT * 1000))

  def same(self, what: str, value: dict[str, Any]) -> None:
    """Checks that all processes hold a value.

    Args:
      what: It is, in words.
      value: A dict of JSON values.

    Raises:
      InputError: This process's is not the first one's; what differs is listed.
    """
    theirs, ours = self.share(value), json.loads(json.dumps(value))
    theirs = json.loads(json.dumps(theirs))
    lines = [
      f"  {key}: {theirs.get(key)!r} in process 0, {ours.get(key)!r} here"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key)
    ]
    if lines:
      raise InputError(
        f"process {self.index} has another {what} than process 0; give all of them the same:\n"
        + "\n".join(lines)
      )

  def wait(self) -> None:
    """Returns once all processes have come here."""
    if self.count > 1:
      self._client.wait_at_barrier(self._key(), WAIT * 1000)

  @contextlib.contextmanager
  def closing(self, thing: Any) -> Iterator[None]:
    """Closes a thing in the end; where one of several processes fails, it leaves that out.

    Closing may wait for the others, who will not come there: they are to be told first.
    """
    try:
      yield
    except BaseException:
      if self.count == 1:
        thing.close()
      raise
    thing.close()

  @contextlib.contextmanager
  def heeding_sigterm(self) -> Iterator[None]:
    """Takes SIGTERM, in any process, as the wish to stop; see `stops_before`."""
    if threading.current_thread() is not threading.main_thread():
      yield  # only the main thread may say what signals do
      return

    before = signal.signal(signal.SIGTERM, lambda number, frame: self.ask_to_stop())
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, before)

  def ask_to_stop(self) -> None:
    """Has all processes stop soon; see `stops_before`."""
    self._asked = True

  def stops_before(self, step: int) -> bool:
    """Whether the run is to stop before a step: asked once before each, in ascending order.

    All processes stop before the same step. Nobody waits for others as long as nobody is asked to
    stop; then each says in the background which steps it has begun, and begins no other until all
    have. They stop before the first one that none has begun.

    Args:
      step: The step that would be taken next.

    Returns:
      True from the step before which the run stops.
    """
    if self.count == 1:
      return self._asked
    with self._deciding:
      if self._stop_at is not None and step >= self._stop_at:
        return True
      self._next = step + 1
      return False

  def leave(self, status: int, message: str = "") -> None:
    """Ends this process of several, the others too where it failed; does not return.

    A process that just ended would have its peers wait until it counts as lost, and one that ends
    as Python does waits for them.

    Args:
      status: Exit status; 0: its work is done, as that of the others.
      message: Why, for the others to print.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, or others failed
      if status:
        self._client.key_value_set(FAILED, json.dumps([self.index, status, message]))
    self._go(status)

  def wait_for_word(self, seconds: float) -> None:
    """Gives others, or jax, the time to end this process with the reason of an error it has met."""
    time.sleep(seconds)

  def _go(self, status: int) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(f"{GONE}{self.index}", "", allow_overwrite=True)
      until = time.monotonic() + LINGER
      while self.first and time.monotonic() < until:
        if len(self._client.key_value_dir_get(GONE)) == self.count:
          break
        time.sleep(0.05)
    flush()
    os._exit(status)

  def _key(self) -> str:
    self._calls += 1
    return f"dmpo_jax/call/{self._calls}"

  def _watch(self) -> None:
    """Looks at what others have said, as long as the service answers: without it, jax ends us."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      while True:
        time.sleep(POLL)
        told = dict(self._client.key_value_dir_get(TOLD))
        if FAILED in told:
          index, status, message = json.loads(told[FAILED])
          if index != self.index:
            say(f"process {index} of {self.count} stopped: {message}")
            self._go(status)
        if self._stop_at is None:
          self._decide(STOP in told)

  def _decide(self, told: bool) -> None:
    """A part of what `stops_before` describes, each time it is called."""
    if not self._published:
      if not self._asked and not told:
        return
      self._deciding.acquire()  # no step is begun until all have said theirs
      self._client.key_value_set(STOP, "", allow_overwrite=True)
      self._client.key_value_set(f"{AT}{self.index}", str(self._next))
      self._published = True
    said = [int(step) for _, step in self._client.key_value_dir_get(AT)]
    if len(said) == self.count:
      self._stop_at = max(said)
      self._deciding.release()


def connect(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  heartbeat: int,
  patience: int = 300,
) -> Peers:
  """Joins the processes of a run; to be called before anything uses a device.

  Args:
    coordinator: "HOST:PORT" at which process 0 listens; None, as the next two, where jax finds all
      by itself: TPU pods, Slurm, MPI, Kubernetes.
    count: Number of processes.
    index: Of this one.
    heartbeat: Seconds without a sign of life after which a process counts as lost.
    patience: Seconds to wait for the others to come.

  Returns:
    `Peers`.

  Raises:
    InputError: What was not given cannot be found.
  """
  # SIGTERM is heeded by `Peers`; jax's own notifier would take it away.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=heartbeat,
      initialization_timeout=patience,
    )
  except ValueError as error:
    raise InputError(
      f"cannot find the other processes: {error}; jax does by itself on TPU pods and under Slurm, "
      "MPI or Kubernetes; elsewhere give --coordinator, --num-processes and --process-id"
    ) from error
  state = jax_distributed.global_state
  return Peers(state.client, state.process_id, state.num_processes)
