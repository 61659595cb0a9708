"""The processes of one run: they agree on values, stop at one step and exit together.

They communicate over the key-value store of jax's coordination service, which process 0 hosts. The
service also supervises them: a process that sends no heartbeat is lost, and jax then ends the
others (SIGABRT), because a collective that waits for the lost process never returns.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

# Private API of jax, without a public equivalent: the coordination service's key-value store and
# barriers. Check this module, `connect` above all, after each upgrade of jax.
from jax._src import distributed as jax_distributed

from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError, flush

LOGGER = logging.getLogger(__name__)

# Seconds between two reads of the control messages.
POLL = 0.5
# Longest time, in seconds, for which process 0 keeps the service open until all have exited.
LINGER = 15.0
# Timeout, in seconds, of messages that always arrive, unless jax ends this process first.
WAIT = 24 * 3600

# Keys of the store. CONTROL is polled by all processes; the two messages below it are sent once.
CONTROL = "dmpo_jax/control/"
STOP, FAILED = f"{CONTROL}stop", f"{CONTROL}failed"
# By process index: the next step of a process that prepares to stop; processes that have exited.
NEXT_STEP, EXITED = "dmpo_jax/next_step/", "dmpo_jax/exited/"


class Processes:
  """The processes of a run, as one of them communicates with the others.

  Without arguments: a single process. All processes call `broadcast`, `assert_equal` and `barrier`
  in the same order, because the store's keys are numbered by call.

  Args:
    client: Client of jax's coordination service; None for a single process.
    index: Index of this process, 0 to count - 1.
    count: Number of processes.
  """

  def __init__(self, client: Any = None, index: int = 0, count: int = 1):
    self.index, self.count = index, count
    self._client, self._calls = client, 0
    self._stop_requested = False
    self._next_step, self._stop_step, self._published = 0, None, False
    self._deciding = threading.Lock()
    if count > 1:
      threading.Thread(target=self._watch, daemon=True).start()

  @property
  def is_first(self) -> bool:
    """True in process 0, which writes the files of the run."""
    return self.index == 0

  def broadcast(self, value: Any) -> Any:
    """Returns process 0's value (JSON) in all processes; the values of the others are ignored."""
    if self.count == 1:
      return value
    key = self._next_key()
    if self.is_first:
      self._client.key_value_set(key, json.dumps(value))
      return value
    return json.loads(self._client.blocking_key_value_get(key, WAIT * 1000))

  def assert_equal(self, name: str, value: dict[str, Any]) -> None:
    """Raises unless this process has the same value as process 0.

    Args:
      name: Name of the value, for the message.
      value: A nested dict of JSON values.

    Raises:
      InputError: The values differ; the message lists the keys that differ.
    """
    if different := differences(self.broadcast(value), value):
      raise InputError(
        f"process {self.index} has another {name} than process 0; start all processes with the "
        "same:\n" + describe(different, first="in process 0")
      )

  def barrier(self) -> None:
    """Waits until all processes have called this."""
    if self.count > 1:
      self._client.wait_at_barrier(self._next_key(), WAIT * 1000)

  @contextlib.contextmanager
  def closing(self, resource: Any) -> Iterator[None]:
    """Closes a resource on exit, except after an error in one of several processes.

    `close` may wait for the other processes, which do not reach it: `exit` must end them first.
    """
    try:
      yield
    except BaseException:
      if self.count == 1:
        resource.close()
      raise
    resource.close()

  @contextlib.contextmanager
  def preemption_handler(self) -> Iterator[None]:
    """Handles SIGTERM, in any process, as a request to stop; see `should_stop`."""
    if threading.current_thread() is not threading.main_thread():
      yield  # Python sets signal handlers in the main thread only
      return

    previous = signal.signal(signal.SIGTERM, lambda number, frame: self.request_stop())
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, previous)

  def request_stop(self) -> None:
    """Makes all processes stop at a step that they agree on; see `should_stop`."""
    self._stop_requested = True

  def should_stop(self, step: int) -> bool:
    """Returns True from the step on that the run must not start.

    All processes stop before the same step: the first one that no process has started. Until a stop
    is requested nobody waits. Then each process publishes its next step, from a background thread,
    and starts no step until all have published theirs.

    Args:
      step: Step to be started next. Call this once before each step, in ascending order.
    """
    if self.count == 1:
      return self._stop_requested
    with self._deciding:
      if self._stop_step is not None and step >= self._stop_step:
        return True
      self._next_step = step + 1
      return False

  def exit(self, status: int, message: str = "") -> None:
    """Ends this one of several processes and, on failure, the others; does not return.

    Without this the others would wait for a failed process until its heartbeat times out, and the
    normal exit of Python would wait for the others.

    Args:
      status: Exit status; 0 after success.
      message: Reason of a failure, which the other processes print.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # service gone, or another failed first
      if status:
        self._client.key_value_set(FAILED, json.dumps([self.index, status, message]))
    self._exit(status)

  def wait_for_shutdown(self, seconds: float) -> None:
    """Sleeps, so that a failed process, or jax, can end this one with the cause of its error."""
    time.sleep(seconds)

  def _exit(self, status: int) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(f"{EXITED}{self.index}", "", allow_overwrite=True)
      # The store ends with process 0, so it exits last: the others still read FAILED.
      deadline = time.monotonic() + LINGER
      while self.is_first and time.monotonic() < deadline:
        if len(self._client.key_value_dir_get(EXITED)) == self.count:
          break
        time.sleep(0.05)
    flush()
    # Not sys.exit: jax's exit handlers wait at a barrier for processes that do not arrive, and this
    # function also runs in the background thread, where SystemExit ends the thread alone.
    os._exit(status)

  def _next_key(self) -> str:
    self._calls += 1
    return f"dmpo_jax/call/{self._calls}"

  def _watch(self) -> None:
    """Polls the control messages until the service is gone, when jax ends this process."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      while True:
        time.sleep(POLL)
        control = dict(self._client.key_value_dir_get(CONTROL))
        if FAILED in control:
          index, status, message = json.loads(control[FAILED])
          if index != self.index:
            LOGGER.error("process %d of %d stopped: %s", index, self.count, message)
            self._exit(status)
        if self._stop_step is None:
          self._agree_on_stop_step(STOP in control)

  def _agree_on_stop_step(self, requested: bool) -> None:
    """Advances the protocol that `should_stop` describes; called once per poll.

    The lock is acquired here in one call and released in a later one, and stays locked between: a
    step that starts after its process has published its next step would break the agreement.
    """
    if not self._published:
      if not self._stop_requested and not requested:
        return
      self._deciding.acquire()
      self._client.key_value_set(STOP, "", allow_overwrite=True)
      self._client.key_value_set(f"{NEXT_STEP}{self.index}", str(self._next_step))
      self._published = True
    steps = [int(step) for _, step in self._client.key_value_dir_get(NEXT_STEP)]
    if len(steps) == self.count:
      self._stop_step = max(steps)
      self._deciding.release()


def bind_address(coordinator: str | None) -> str | None:
  """The address at which process 0 listens, "ADDRESS:PORT"; None: all interfaces, jax's default.

  Args:
    coordinator: "HOST:PORT" or "[HOST]:PORT".

  Returns:
    The first address of the host that this machine has. None where it has none of them, as behind a
    translated address, or where no coordinator is given.
  """
  if coordinator is None:
    return None
  host, _, port = coordinator.rpartition(":")
  try:
    candidates = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
  except OSError:
    candidates = []  # jax reports a host that nobody knows
  for family, kind, protocol, _, address in candidates:
    with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
      probe.bind((address[0], 0, *address[2:]))
      return f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"
  LOGGER.warning(
    "%s is no address of this machine: the coordinator listens on all interfaces, and whoever "
    "reaches port %s can stop the run",
    host,
    port,
  )
  return None


def connect(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  heartbeat: int,
  timeout: int = 300,
) -> Processes:
  """Connects the processes of a run; call it before anything uses a device.

  Args:
    coordinator: "HOST:PORT" at which process 0 listens, on the address of HOST alone where that is
      an address of its machine, since the service has no authentication. None, with count and
      index None too, where jax finds the processes by itself: TPU pods, Slurm, MPI, Kubernetes.
    count: Number of processes.
    index: Index of this process.
    heartbeat: Seconds without a heartbeat after which a process counts as lost.
    timeout: Seconds to wait for the other processes.

  Returns:
    `Processes`.

  Raises:
    InputError: An argument is None and jax cannot find its value.
  """
  # `preemption_handler` handles SIGTERM; jax's own notifier would replace that handler.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      coordinator_bind_address=bind_address(coordinator) if index == 0 else None,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=heartbeat,
      initialization_timeout=timeout,
    )
  except ValueError as error:
    raise InputError(
      f"cannot find the other processes: {error}; jax does by itself on TPU pods and under Slurm, "
      "MPI or Kubernetes; elsewhere give --coordinator, --num-processes and --process-id"
    ) from error
  state = jax_distributed.global_state
  return Processes(state.client, state.process_id, state.num_processes)
