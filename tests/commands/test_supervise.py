"""The parent that turns how its child ended into an exit status."""

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
def work():
  print(os.getpid(), flush=True)
  {}
sys.exit(supervise(work))
"""


def start(work: str) -> subprocess.Popen:
  """The parent of a child that does `work` after it has printed its number."""
  return subprocess.Popen(
    [sys.executable, "-c", CODE.format(work)],
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
def test_the_status_says_how_the_child_ended(work, status):
  assert start(work).wait(30) == status


def test_a_child_that_is_told_to_stop_before_it_can_save_was_preempted():
  parent = start("time.sleep(60)")
  parent.stdout.readline()
  parent.send_signal(signal.SIGTERM)
  assert parent.wait(30) == 75


def test_a_child_that_heeds_sigterm_has_its_own_status():
  parent = start("signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); time.sleep(60)")
  parent.stdout.readline()
  time.sleep(0.3)  # until the child has said what it does then
  parent.send_signal(signal.SIGTERM)
  assert parent.wait(30) == 7


def test_the_child_dies_with_the_parent():
  parent = start("time.sleep(60)")
  child = int(parent.stdout.readline())
  parent.kill()
  parent.wait()
  until = time.monotonic() + 20
  while pathlib.Path(f"/proc/{child}/status").exists():
    state = pathlib.Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
    if state == "Z" or time.monotonic() > until:  # nobody in a container may collect it
      break
    time.sleep(0.05)
  assert time.monotonic() < until
