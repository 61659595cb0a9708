"""Runs on several slices, in real processes: a slice is one of them, with two devices."""

import time

import numpy as np
import pytest

from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.run import train
from tests.training import processes_config
from tests.training.processes import Processes

TWO_SLICES = ["--config.mesh.fsdp=2", "--config.mesh.slices=2"]


@pytest.mark.slow
def test_a_run_that_loses_a_slice_ends_with_76_and_goes_on_with_two_slices_or_with_one(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(processes_config.sharding, "SMALLEST", 64)  # as in the processes
  workdir = tmp_path / "run"

  def start(steps):
    arguments = [*TWO_SLICES, f"--config.num_steps={steps}"]
    options = {"log": tmp_path / "log", "arguments": arguments, "kind": "slices"}
    return Processes(workdir, count=2, devices=2, **options)

  with start(100_000) as run:
    while len(read(workdir)) < 6 and not run.ended():
      time.sleep(0.01)
    run.all[1].kill()
    assert run.statuses() == [76, -9], run.output()
  last = len(read(workdir)) + 2
  with start(last) as run:
    assert run.statuses() == [0, 0], run.output()

  def one_process(folder, **changes):
    config = processes_config.get_config("slices")
    config.update(changes)
    return train(config, folder, show_progress=False)

  one_slice = {"num_devices": 2, "mesh": {"fsdp": 2}}
  assert one_process(workdir, num_steps=last + 2, **one_slice).resumed_at == last
  one_process(tmp_path / "whole", num_steps=last + 2, num_devices=1)
  rows, expected = read(workdir), read(tmp_path / "whole")
  assert [row["step"] for row in rows] == list(range(1, last + 3))
  np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in expected], rtol=1e-4)
