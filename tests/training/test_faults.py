"""Processes killed at random moments, and full disks: no step is lost or repeated.

DMPO_JAX_KILLS is the number of kills (by default 1; docs/fault_tolerance.md has that of a long
run), DMPO_JAX_KILLS_SEED the seed of their times and victims.
"""

import os
import random
import re
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from dmpo_jax.training.monitor.metrics import read
from tests.training.processes import CONFIG, ROOT, Processes, environment
from tests.training.rows import computed

KILLS = int(os.environ.get("DMPO_JAX_KILLS", "1"))
SEED = int(os.environ.get("DMPO_JAX_KILLS_SEED", "0"))


def weights(workdir):
  return load_file(workdir / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_two_processes_killed_repeatedly_end_with_the_results_of_an_uninterrupted_run(tmp_path):
  rng, log = random.Random(SEED), tmp_path / "log"
  start = {"count": 2, "devices": 1, "log": log}
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  start["arguments"] = [f"--config.num_steps={8 * (KILLS + 1)}"]
  with Processes(whole, **start) as run:
    assert run.statuses() == [0, 0], run.output()

  kills = 0
  while kills < KILLS:
    rows = len(read(killed))
    with Processes(killed, **start) as run:
      # Some die before their first step, while they read and compile, most of them later, while
      # they compute, record or save.
      if rng.random() < 0.2:
        run.wait_until_connected()
        time.sleep(rng.random() * 5)
      else:
        until = rows + rng.randrange(1, 7)
        while len(read(killed)) < until and not run.ended():
          time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
      victim = rng.randrange(2)
      if run.ended():
        break  # all steps are done
      run.all[victim].kill()
      killed_at, statuses = time.monotonic(), run.statuses()
      assert statuses[victim] == -9
      assert statuses[1 - victim] == 76, run.output()
      kills += 1
      print(
        f"kill {kills}: process {victim} at row {len(read(killed))}, the other ended after "
        f"{time.monotonic() - killed_at:.1f} s"
      )
  with Processes(killed, **start) as run:
    assert run.statuses() == [0, 0], run.output()
  assert kills == KILLS
  assert computed(killed) == computed(whole)
  one, other = weights(whole), weights(killed)
  assert one.keys() == other.keys()
  assert all(np.array_equal(one[name], other[name]) for name in one)


def saved(workdir):
  """Steps of the complete checkpoints, and 0."""
  return {0} | {int(path.name) for path in (workdir / "checkpoints").glob("*") if path.suffix == ""}


@pytest.mark.slow
def test_a_full_disk_under_one_process_ends_both_with_the_reason(tmp_path):
  workdir, log, last = tmp_path / "run", tmp_path / "log", 0
  endless = ["--config.num_steps=100000", "--config.checkpoint.keep=1"]
  for victim in (0, 1):
    with Processes(workdir, count=2, devices=1, log=log, arguments=endless) as run:
      while max(saved(workdir)) <= last and not run.ended():
        time.sleep(0.01)
      # A limit on the size of its files: enough for the log, not for a checkpoint.
      resource.prlimit(run.worker(victim), resource.RLIMIT_FSIZE, (20_000, 20_000))
      assert run.statuses() == [1, 1], run.output()
    match = re.search(r"cannot save step (\d+) in .*File too large", run.output())
    assert match, run.output()
    last = max(saved(workdir))
    assert last == int(match.group(1)) - 4

  # Without the limit the run resumes from the last checkpoint.
  more = [f"--config.num_steps={last + 2}"]
  with Processes(workdir, count=2, devices=1, log=log, arguments=more) as run:
    assert run.statuses() == [0, 0], run.output()
  assert [row["step"] for row in read(workdir)] == list(range(1, last + 3))


def test_a_full_disk_ends_a_run_with_the_reason_and_no_traceback(tmp_path):
  command = [sys.executable, "-m", "dmpo_jax.commands.main", "train", "--no-progress"]
  command += ["--config", f"{CONFIG}:steps", "--workdir", str(tmp_path / "run")]
  command += ["--config.num_steps=100000", "--config.checkpoint.keep=1"]
  with subprocess.Popen(
    command, cwd=ROOT, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  ) as run:
    while max(saved(tmp_path / "run")) == 0 and run.poll() is None:
      time.sleep(0.01)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    output = run.communicate(timeout=300)[0].decode()
  assert run.returncode == 1, output
  assert re.search(r"^dmpo-jax: cannot save step \d+ in .*File too large", output, re.MULTILINE)
  assert "Traceback" not in output, output
