"""Workers killed at random moments, many times over: nothing is lost and nothing repeated. A disk
that is full under one of them.

DMPO_JAX_KILLS says how many times (here once; docs/fault_tolerance.md has the count of a long run),
and DMPO_JAX_KILLS_SEED when and which.
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
def test_killed_again_and_again_two_workers_end_as_if_they_had_not_been(tmp_path):
  chance, log = random.Random(SEED), tmp_path / "log"
  start = {"count": 2, "devices": 1, "log": log}
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  start["arguments"] = [f"--config.num_steps={8 * (KILLS + 1)}"]
  with Processes(whole, **start) as run:
    assert run.statuses() == [0, 0], run.output()

  kills = 0
  while kills < KILLS:
    rows = len(read(killed))
    with Processes(killed, **start) as run:
      # Some die before their first step (they read, compare, compile), most of them later: while
      # they compute, record or save.
      if chance.random() < 0.2:
        run.wait_until_together()
        time.sleep(chance.random() * 5)
      else:
        until = rows + chance.randrange(1, 7)
        while len(read(killed)) < until and not run.ended():
          time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
      victim = chance.randrange(2)
      if run.ended():
        break  # all steps are done
      run.all[victim].kill()
      died, statuses = time.monotonic(), run.statuses()
      assert statuses[victim] == -9
      assert statuses[1 - victim] == 76, run.output()
      kills += 1
      print(
        f"kill {kills}: process {victim} at row {len(read(killed))}, the other ended after "
        f"{time.monotonic() - died:.1f} s"
      )
  with Processes(killed, **start) as run:
    assert run.statuses() == [0, 0], run.output()
  assert kills == KILLS
  assert computed(killed) == computed(whole)
  one, other = weights(whole), weights(killed)
  assert one.keys() == other.keys()
  assert all(np.array_equal(one[name], other[name]) for name in one)


def saved(workdir):
  """Steps of the whole checkpoints; 0 stands for the start."""
  return {0} | {int(path.name) for path in (workdir / "checkpoints").glob("*") if path.suffix == ""}


@pytest.mark.slow
def test_a_disk_that_is_full_under_one_worker_ends_both_with_the_reason(tmp_path):
  workdir, log, last = tmp_path / "run", tmp_path / "log", 0
  endless = ["--config.num_steps=100000", "--config.checkpoint.keep=1"]
  for victim in (0, 1):
    with Processes(workdir, count=2, devices=1, log=log, arguments=endless) as run:
      while max(saved(workdir)) <= last and not run.ended():
        time.sleep(0.01)
      # No file of that process may grow beyond this: room for its log, not for a checkpoint.
      resource.prlimit(run.worker(victim), resource.RLIMIT_FSIZE, (20_000, 20_000))
      assert run.statuses() == [1, 1], run.output()
    found = re.search(r"cannot save step (\d+) in .*File too large", run.output())
    assert found, run.output()
    last = max(saved(workdir))
    assert last == int(found.group(1)) - 4

  # With room the run goes on from the checkpoint before.
  more = [f"--config.num_steps={last + 2}"]
  with Processes(workdir, count=2, devices=1, log=log, arguments=more) as run:
    assert run.statuses() == [0, 0], run.output()
  assert [row["step"] for row in read(workdir)] == list(range(1, last + 3))


def test_a_disk_that_is_full_ends_a_run_with_the_reason_alone(tmp_path):
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
