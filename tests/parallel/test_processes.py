"""Communication between the processes of a run: threads that share a coordination service."""

import concurrent.futures
import os
import random
import signal
import threading
import time

import pytest
from jax._src.lib import _jax

from dmpo_jax.errors import InputError
from dmpo_jax.parallel import processes
from dmpo_jax.parallel.processes import Processes
from tests.training.processes import free_port


@pytest.fixture
def three(monkeypatch):
  """Three connected `Processes`."""
  monkeypatch.setattr(processes, "POLL", 0.02)
  port = free_port()
  service = _jax.get_distributed_runtime_service(f"[::]:{port}", 3, shutdown_timeout=5)
  clients = [
    _jax.get_distributed_runtime_client(f"127.0.0.1:{port}", i, init_timeout=30) for i in range(3)
  ]
  in_all([client.connect for client in clients])
  yield [Processes(client, i, 3) for i, client in enumerate(clients)]
  in_all([client.shutdown for client in clients])
  service.shutdown()


def in_all(functions):
  """Returns the results of functions that wait for each other."""
  with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
    return [future.result(60) for future in [pool.submit(f) for f in functions]]


def test_broadcast_returns_the_value_of_process_0(three):
  for _ in range(2):
    assert in_all([lambda p=p: p.broadcast({"i": p.index}) for p in three]) == [{"i": 0}] * 3


def test_assert_equal_names_the_keys_whose_values_differ(three):
  def check(process):
    if process.index < 2:
      return process.assert_equal("run", {"seed": 0, "data": "a"})
    with pytest.raises(InputError, match=r"(?s)process 2 has another run.*data: 'a' in.*'b' here"):
      process.assert_equal("run", {"seed": 0, "data": "b"})

  in_all([lambda p=p: check(p) for p in three])


@pytest.mark.parametrize("seed", range(4))
def test_all_processes_stop_before_the_same_step(three, seed):
  rng, started = random.Random(seed), [0, 0, 0]

  def train(process):
    step = rng.randrange(2)
    started[process.index] = step
    while step < 100_000 and not process.should_stop(step):
      step += 1
      started[process.index] = step
      time.sleep(rng.random() * 0.003)
      while min(started) < step - 1:  # a step ends once all processes have started it
        time.sleep(0.0002)
    return step

  threading.Timer(rng.random() * 0.1, three[seed % 3].request_stop).start()
  stopped = in_all([lambda p=p: train(p) for p in three])
  assert len(set(stopped)) == 1
  assert stopped[0] == max(started) < 100_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_process_ends_all_with_its_status_and_its_message(three, monkeypatch, caplog):
  statuses = []

  def exit_thread(status):
    statuses.append(status)
    raise SystemExit  # ends the calling thread only

  monkeypatch.setattr(processes.os, "_exit", exit_thread)
  with pytest.raises(SystemExit):
    three[1].exit(2, "no such config")
  deadline = time.monotonic() + 30
  while len(statuses) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert statuses == [2, 2, 2]
  assert caplog.messages.count("process 1 of 3 stopped: no such config") == 2


def test_a_single_process_stops_before_the_next_step_after_sigterm():
  handler = signal.getsignal(signal.SIGTERM)
  process = Processes()
  with process.preemption_handler():
    assert not process.should_stop(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert process.should_stop(1)
  assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
  ("coordinator", "address"),
  [
    ("127.0.0.1:99", "127.0.0.1:99"),
    ("0.0.0.0:99", "0.0.0.0:99"),
    (None, None),
  ],
)
def test_the_coordinator_listens_on_the_given_address_alone(coordinator, address):
  assert processes.bind_address(coordinator) == address


def test_a_host_by_name_listens_on_its_loopback_address():
  assert processes.bind_address("localhost:99") in ("127.0.0.1:99", "[::1]:99")


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_this_machine_is_told(host, caplog):
  assert processes.bind_address(f"{host}:99") is None
  assert "listens on all interfaces" in caplog.text
