"""Several processes on one machine; tests/training/test_layouts.py trains with the script."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.room import ROOT, Room


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def test_a_dry_run_prints_the_command_of_each_process(room):
  options = ["--processes", "2", "--devices", "3", "--dry-run"]
  result = room.run("local.sh", *options, "--config", "a b.py", "--workdir", "w")
  assert result.returncode == 0
  first, second = result.stdout.splitlines()
  assert "NPROC=32" in first
  assert "--xla_force_host_platform_device_count=3" in first
  assert "--config 'a b.py' --workdir w" in first
  assert first.endswith("--num-processes 2 --process-id 0")
  assert second == first[:-1] + "1"


def test_with_gpus_each_process_sees_its_own(room):
  lines = room.run("local.sh", "--gpus", "--dry-run").stdout.splitlines()
  assert [line.split()[1] for line in lines] == [f"CUDA_VISIBLE_DEVICES={i}" for i in range(2)]
  assert "JAX_PLATFORMS" not in lines[0]


@pytest.mark.parametrize(
  "options",
  [
    ["--processes", "0"],
    ["--processes", "9" * 23],
    ["--processes", "1025"],
    ["--devices", "two"],
    ["--restarts"],
  ],
)
def test_a_malformed_number_is_bad_input(room, options):
  result = room.run("local.sh", *options)
  assert result.returncode == 2
  assert options[0] in result.stderr


# A fake dmpo-jax: its last argument is the process index. STATUSES has one word per start, with a
# comma between processes; "term" waits for SIGTERM.
STUB = """#!/usr/bin/env bash
index="${!#}" folder="$(dirname "$0")/.."
echo >> "$folder/starts.$index"
start="$(wc -l < "$folder/starts.$index")"
word="$(cut -d ' ' -f "$start" <<< "$STATUSES" | cut -d , -f "$((index + 1))")"
case "$word" in
  kill) kill -KILL $$ ;;
  deaf) trap '' INT TERM; touch "$folder/waits.$index"; sleep 30 ;;
  term) trap 'exit 75' TERM; touch "$folder/waits.$index"; while :; do sleep 0.05; done ;;
  *) exit "$word" ;;
esac
"""


@pytest.fixture
def script(tmp_path):
  """Starts local.sh with fake processes that exit with the statuses of the test."""
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin" / "python").symlink_to(sys.executable)
  (tmp_path / "bin" / "dmpo-jax").write_text(STUB)
  (tmp_path / "bin" / "dmpo-jax").chmod(0o755)

  def start(statuses: str, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
      [ROOT / "launch" / "local.sh", *options],
      env={**os.environ, "VENV": str(tmp_path), "STATUSES": statuses},
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.mark.parametrize(
  ("statuses", "status", "starts"),
  [
    ("0,0", 0, 1),
    ("76,kill 75,75 0,0", 0, 3),
    ("76,2 0,0", 2, 1),
    ("75,76 75,76 75,76", 75, 3),
  ],
)
def test_only_lost_and_preempted_runs_are_restarted(script, tmp_path, statuses, status, starts):
  run = script(statuses, "--restarts", "2")
  assert run.wait(60) == status, run.stderr.read()
  assert len((tmp_path / "starts.1").read_text().splitlines()) == starts


def test_numbers_with_leading_zeros_are_decimal(room):
  lines = room.run("local.sh", "--processes", "010", "--dry-run").stdout.splitlines()
  assert len(lines) == 10


def test_ctrl_c_ends_processes_that_do_not_listen_within_two_seconds(script, tmp_path):
  run = script("deaf,deaf")
  wait_for(tmp_path)
  started = time.monotonic()
  run.send_signal(signal.SIGINT)
  assert run.wait(10) == 130
  assert time.monotonic() - started < 2.5  # the machine may be busy
  assert len((tmp_path / "starts.0").read_text().splitlines()) == 1


def test_ctrl_c_while_processes_are_started_ends_them_too(script, tmp_path):
  run = script(",".join(["deaf"] * 20), "--processes", "20")
  until = time.monotonic() + 30
  while not list(tmp_path.glob("waits.*")) and time.monotonic() < until:
    time.sleep(0.005)
  started = time.monotonic()
  run.send_signal(signal.SIGINT)
  assert run.wait(10) == 130
  assert time.monotonic() - started < 3  # the machine may be busy


def wait_for(folder):
  until = time.monotonic() + 30
  while len(list(folder.glob("waits.*"))) < 2 and time.monotonic() < until:
    time.sleep(0.02)


def test_sigterm_goes_to_all_processes_and_ends_the_restarts(script, tmp_path):
  run = script("term,term")
  wait_for(tmp_path)
  run.terminate()
  assert run.wait(60) == 75, run.stderr.read()
  assert len((tmp_path / "starts.0").read_text().splitlines()) == 1
