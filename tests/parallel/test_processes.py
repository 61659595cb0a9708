"""What processes of a run tell each other: over jax's own coordination service, in threads."""

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
from dmpo_jax.parallel.processes import Peers
from tests.training.processes import free_port


@pytest.fixture
def three(monkeypatch):
  """Three connected `Peers`."""
  monkeypatch.setattr(processes, "POLL", 0.02)
  port = free_port()
  service = _jax.get_distributed_runtime_service(f"[::]:{port}", 3, shutdown_timeout=5)
  clients = [
    _jax.get_distributed_runtime_client(f"127.0.0.1:{port}", i, init_timeout=30) for i in range(3)
  ]
  in_all([client.connect for client in clients])
  yield [Peers(client, i, 3) for i, client in enumerate(clients)]
  in_all([client.shutdown for client in clients])
  service.shutdown()


def in_all(functions):
  """What functions return that wait for each other."""
  with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
    return [future.result(60) for future in [pool.submit(f) for f in functions]]


def test_all_get_the_value_of_the_first(three):
  for _ in range(2):
    assert in_all([lambda p=p: p.share({"i": p.index}) for p in three]) == [{"i": 0}] * 3


def test_a_process_that_holds_another_value_names_what_differs(three):
  def check(peers):
    if peers.index < 2:
      return peers.same("run", {"seed": 0, "data": "a"})
    with pytest.raises(InputError, match=r"(?s)process 2 has another run.*data: 'a' in.*'b' here"):
      peers.same("run", {"seed": 0, "data": "b"})

  in_all([lambda p=p: check(p) for p in three])


@pytest.mark.parametrize("seed", range(4))
def test_all_stop_before_one_step_though_no_step_ends_without_all_of_them(three, seed):
  chance, begun = random.Random(seed), [0, 0, 0]

  def train(peers):
    step = chance.randrange(2)
    begun[peers.index] = step
    while step < 100_000 and not peers.stops_before(step):
      step += 1
      begun[peers.index] = step
      time.sleep(chance.random() * 0.003)
      while min(begun) < step - 1:  # the step before this one has not ended
        time.sleep(0.0002)
    return step

  asked = threading.Timer(chance.random() * 0.1, three[seed % 3].ask_to_stop)
  asked.start()
  stopped = in_all([lambda p=p: train(p) for p in three])
  assert len(set(stopped)) == 1
  assert stopped[0] == max(begun) < 100_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_fails_ends_all_with_its_status_and_its_reason(three, monkeypatch, capsys):
  statuses = []

  def leave(status):
    statuses.append(status)
    raise SystemExit  # the thread's alone

  monkeypatch.setattr(processes.os, "_exit", leave)
  with pytest.raises(SystemExit):
    three[1].leave(2, "no such config")
  until = time.monotonic() + 30
  while len(statuses) < 3 and time.monotonic() < until:
    time.sleep(0.01)
  assert statuses == [2, 2, 2]
  assert capsys.readouterr().err.count("process 1 of 3 stopped: no such config") == 2


def test_a_process_by_itself_stops_before_the_next_step_after_sigterm():
  before = signal.getsignal(signal.SIGTERM)
  peers = Peers()
  with peers.heeding_sigterm():
    assert not peers.stops_before(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert peers.stops_before(1)
  assert signal.getsignal(signal.SIGTERM) == before
