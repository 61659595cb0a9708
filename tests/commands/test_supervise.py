"""The parent that turns the end of its child into an exit status."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import os, signal, sys, time
from dmpo_jax.commands.supervise import supervise
def ready():
  print(os.getpid(), flush=True)
def work():
  {}
{}
sys.exit(supervise(work))
"""
SIGNALLED_AT_FORK = """
fork = os.fork
def fork_and_signal():
  child = fork()
  if child:
    os.kill(os.getpid(), signal.SIGTERM)
  return child
os.fork = fork_and_signal
"""


def start(work: str, *before: str, setup: str = "") -> subprocess.Popen:
  """Parent of a child that runs `work`, where ready() prints its process id; `before`: words."""
  return subprocess.Popen(
    [*before, sys.executable, "-c", CODE.format(work, setup)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


@pytest.mark.parametrize(
  ("work", "status"),
  [
    ("os._exit(0)", 0),
    ("os._exit(2)", 2),
    ("os.abort()", 76),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137),
  ],
)
def test_the_exit_status_follows_from_the_end_of_the_child(work, status):
  assert start(work).wait(30) == status


def test_a_child_killed_by_sigterm_counts_as_preempted():
  parent = start("ready(); time.sleep(60)")
  parent.stdout.readline()
  parent.send_signal(signal.SIGTERM)
  assert parent.wait(30) == 75


def test_a_signal_between_the_fork_and_the_handlers_is_passed_on():
  parent = start("time.sleep(60)", setup=SIGNALLED_AT_FORK)
  assert parent.wait(30) == 75


def test_a_child_that_handles_sigterm_has_its_own_status():
  handles = "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))"
  parent = start(f"{handles}; ready(); time.sleep(60)")
  parent.stdout.readline()
  parent.send_signal(signal.SIGTERM)
  assert parent.wait(30) == 7


def interrupted(work: str, *before: str) -> tuple[int, float]:
  """Exit status of the parent after two SIGINT, and how long that took."""
  parent = start(work, *before)
  parent.stdout.readline()
  started = time.monotonic()
  parent.send_signal(signal.SIGINT)
  time.sleep(0.05)  # a terminal and a launch script both send one
  parent.send_signal(signal.SIGINT)
  return parent.wait(30), time.monotonic() - started


STOPS = """
  try: ready(); time.sleep(60)
  except KeyboardInterrupt: time.sleep(0.2); os._exit(130)"""


def test_ctrl_c_reaches_the_child_once():
  status, seconds = interrupted(STOPS)
  assert status == 130
  assert seconds < 1.4


def test_ctrl_c_reaches_a_child_of_a_process_that_a_script_started_in_the_background():
  status, seconds = interrupted(STOPS, "sh", "-c", "trap '' INT; exec \"$@\"", "-")
  assert status == 130
  assert seconds < 1.4


def test_a_child_that_does_not_listen_to_ctrl_c_is_killed():
  status, seconds = interrupted(
    "signal.signal(signal.SIGINT, signal.SIG_IGN); ready(); time.sleep(60)"
  )
  assert status == 130
  assert seconds < 2.5  # the machine may be busy


def test_the_child_ends_with_the_parent():
  parent = start("ready(); time.sleep(60)")
  child = int(parent.stdout.readline())
  parent.kill()
  parent.wait()
  until = time.monotonic() + 20
  while pathlib.Path(f"/proc/{child}/status").exists():
    state = pathlib.Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
    if state == "Z" or time.monotonic() > until:  # in a container no process may reap it
      break
    time.sleep(0.05)
  assert time.monotonic() < until
