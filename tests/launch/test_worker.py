"""launch/worker.sh on a real machine."""

import subprocess
import time

import pytest

from tests.launch.room import ROOT

WORKER = ROOT / "launch" / "worker.sh"
# After SIGTERM it takes a moment to save, as a run does.
SAVES = "trap 'sleep 0.3; echo saved; exit 75' TERM; echo started; while :; do sleep 0.1; done"


def _attempt(home, name, script):
  return subprocess.Popen(
    ["bash", WORKER, "attempt", name, "bash", "-c", script],
    env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _wait_for(file, text):
  for _ in range(400):
    if file.exists() and text in file.read_text():
      return
    time.sleep(0.05)
  raise AssertionError(f"{file} does not contain {text!r}")


def test_a_new_attempt_lets_the_previous_one_save_and_end_first(tmp_path):
  first = _attempt(tmp_path, "1", SAVES)
  _wait_for(tmp_path / "dmpo_attempts/1.log", "started")
  second = _attempt(tmp_path, "2", "cat $HOME/dmpo_attempts/1.status; exit 3")
  assert second.communicate(timeout=30)[0] == "75\n"
  assert second.returncode == 3
  assert "saved" in first.communicate(timeout=30)[0]
  assert first.returncode == 75


def test_an_attempt_killed_with_its_shell_counts_as_lost(tmp_path):
  attempt = _attempt(tmp_path, "1", "echo started; kill -KILL 0")
  output, errors = attempt.communicate(timeout=30)
  assert "started" in output
  assert attempt.returncode == 76
  assert "ended without a status" in errors


def test_a_finished_attempt_is_not_run_again(tmp_path):
  script = "echo once >> $HOME/runs; exit 5"
  for _ in range(2):
    attempt = _attempt(tmp_path, "1", script)
    attempt.communicate(timeout=30)
    assert attempt.returncode == 5
  assert (tmp_path / "runs").read_text() == "once\n"


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_an_unknown_command_is_refused(arguments):
  result = subprocess.run(["bash", WORKER, *arguments], capture_output=True, text=True)
  assert result.returncode == 2
  assert "is not one of setup, guard, attempt" in result.stderr


# --- guard ---


def _guard(workdir, limit="2", run="job7"):
  return subprocess.run(
    ["bash", WORKER, "guard", workdir, limit, run], capture_output=True, text=True, cwd=workdir
  )


@pytest.mark.parametrize(
  "content",
  [
    "",
    "job7",
    "job7 0",
    "job7 0 limit[$(touch PWNED)]",
    "job7 $(touch PWNED) 1",
    "job7 0 1 2",
    "9" * 40,
  ],
)
def test_a_damaged_count_of_starts_is_told_and_counted_anew(content, tmp_path):
  (tmp_path / "starts.txt").write_text(content)
  result = _guard(tmp_path)
  assert result.returncode == 0
  assert f"{tmp_path}/starts.txt is damaged" in result.stderr
  assert (tmp_path / "starts.txt").read_text() == "job7 0 1\n"
  assert not (tmp_path / "PWNED").exists()


def test_a_count_without_a_line_break_counts(tmp_path):
  (tmp_path / "starts.txt").write_text("job7 0 2")
  result = _guard(tmp_path)
  assert result.returncode == 2
  assert "the last 2 starts left no checkpoint after step 0" in result.stderr


def test_only_names_of_checkpoints_count_as_steps(tmp_path):
  for name in ("10", "08", "9" * 30, "a[$(touch PWNED)]", "12.partial"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert _guard(tmp_path).returncode == 0
  assert (tmp_path / "starts.txt").read_text() == "job7 10 1\n"


def test_the_count_does_not_follow_a_planted_link(tmp_path):
  (tmp_path / "mine").write_text("mine")
  (tmp_path / "starts.txt.new").symlink_to(tmp_path / "mine")
  assert _guard(tmp_path).returncode == 0
  assert (tmp_path / "mine").read_text() == "mine"
  assert (tmp_path / "starts.txt").read_text() == "job7 0 1\n"


def test_a_limit_that_is_no_number_is_refused(tmp_path):
  assert _guard(tmp_path, limit="x[$(touch PWNED)]").returncode == 2
  assert not (tmp_path / "PWNED").exists()


def test_the_starts_of_a_run_in_a_bucket_are_counted_by_python(tmp_path):
  python = tmp_path / "dmpo_venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "$@"; exit 2\n')
  python.chmod(0o755)
  command = ["bash", WORKER, "guard", "gs://bucket/run", "5", "job7"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert result.returncode == 2
  assert result.stdout == "-m dmpo_jax.training.starts gs://bucket/run 5 job7\n"
