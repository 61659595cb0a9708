"""Workers killed at random moments, many times over: nothing is lost and nothing repeated.

DMPO_JAX_KILLS says how many times (here once; docs/survival.md has the count of a long run), and
DMPO_JAX_KILLS_SEED when and which.
"""

import os
import random
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from dmpo_jax.training.metrics import read
from tests.training.processes import Processes
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
