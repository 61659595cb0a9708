"""One run in several layouts: on devices of one process, and in real processes."""

import os
import signal
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dmpo_jax.commands.main import main
from dmpo_jax.errors import InputError
from dmpo_jax.training import config_ranges
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.export import export
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.run import train
from tests.training import processes_config
from tests.training.processes import Local, Processes

FOUR = {"num_devices": 4, "mesh": {"fsdp": 2}}


@pytest.fixture(scope="module", autouse=True)
def settings_of_the_processes():
  """Settings of their config: small arrays are split, and ranges are wider."""
  before, ranges = processes_config.sharding.SMALLEST, dict(config_ranges.RANGES)
  processes_config.sharding.SMALLEST = 64
  config_ranges.RANGES.update(processes_config.FREE)
  yield
  processes_config.sharding.SMALLEST = before
  config_ranges.RANGES.update(ranges)


def config(kind, **changes):
  result = processes_config.get_config(kind)
  result.update(changes)
  return result


def weights(pipeline):
  return load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")


def furthest(one, other):
  """The largest difference in any array, relative to the largest element of that array."""
  assert one.keys() == other.keys()
  return max(np.abs(one[k] - other[k]).max() / np.abs(one[k]).max() for k in one)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("gradients")


@pytest.fixture(scope="module")
def one(root):
  """The gradient of the first step on one device, and its metrics."""
  train(config("gradient", num_devices=1), root / "one", show_progress=False)
  return weights(root / "one" / "pipeline"), read(root / "one")[0]


def compare(one, other):
  (gradient, row), (other_gradient, other_row) = one, other
  assert furthest(gradient, other_gradient) < 1e-5
  for name in ("loss", "gradient_norm", "policy_w"):
    np.testing.assert_allclose(other_row[name], row[name], rtol=1e-5)


@pytest.mark.slow
def test_four_devices_agree_with_one_in_loss_and_gradients(root, one):
  train(config("gradient", **FOUR), root / "four", show_progress=False)
  compare(one, (weights(root / "four" / "pipeline"), read(root / "four")[0]))
  compare_monitoring(root, "four")


def monitored(workdir):
  """Record of the held-out evaluation and sample grid before the first step."""
  picture = Image.open(workdir / "samples" / "step_000000.png")
  return read(workdir, "held_out")[0], np.asarray(picture).astype(int)


def compare_monitoring(root, layout):
  (row, picture), (other_row, other_picture) = monitored(root / "one"), monitored(root / layout)
  assert row["preferred_change"] == other_row["preferred_change"] == 0
  for part, other in zip([row, *row["bins"]], [other_row, *other_row["bins"]], strict=True):
    assert other["preferred"] == pytest.approx(part["preferred"], rel=1e-5)
  assert np.abs(picture - other_picture).max() <= 1


@pytest.mark.slow
def test_two_processes_agree_with_one_device_and_end_together_at_a_nan_loss(root, one):
  workdir = root / "processes"
  arguments = ["--config.mesh.fsdp=2", "--config.num_steps=3"]
  start = {"count": 2, "devices": 2, "log": root / "log", "arguments": arguments}
  with Processes(workdir, **start, kind="gradient") as run:
    assert run.statuses() == [2, 2], run.output()
  assert "step 2: the loss of 8 of 8 examples is not finite (examples with ids [" in run.output()
  assert "that of step 1 is good" in run.output()
  assert export(workdir, root / "exported") == 1  # what two processes saved, read by one
  compare(one, (weights(root / "exported"), read(workdir)[0]))
  compare_monitoring(root, "processes")


@pytest.mark.slow
def test_a_run_resumes_in_another_layout_and_after_sigterm(tmp_path, capsys):
  moved, log = tmp_path / "moved", tmp_path / "local.log"
  train(config("steps", num_steps=4, **FOUR), moved, show_progress=False)

  # On two processes of two devices each, until one of them receives SIGTERM.
  arguments = ["--config.num_steps=100000", "--config.checkpoint.every=100000"]
  with Local(moved, log=log, arguments=arguments) as run:
    while len(read(moved)) < 6 and run.script.poll() is None:
      time.sleep(0.05)
    with pytest.raises(InputError, match="another process is training"):
      train(config("steps"), moved, show_progress=False)
    os.kill(run.worker(1), signal.SIGTERM)
    assert run.script.wait(300) == 75, log.read_text()
  stopped = read(moved)[-1]["step"]
  assert f"after step {stopped} of 100000, which is saved" in log.read_text()
  assert 6 <= stopped < 100_000

  # On one device.
  last = {"num_devices": 1, "num_steps": stopped + 4}
  assert train(config("steps", **last), moved, show_progress=False).resumed_at == stopped
  train(config("steps", **last), tmp_path / "whole", show_progress=False)
  one, other = (weights(tmp_path / name / "pipeline") for name in ("whole", "moved"))
  assert furthest(one, other) < 1e-4
  rows, others = read(tmp_path / "whole"), read(moved)
  assert [row["step"] for row in rows] == [row["step"] for row in others]
  np.testing.assert_allclose([r["loss"] for r in others], [r["loss"] for r in rows], rtol=1e-4)

  # inspect reads the checkpoint that the processes saved.
  assert main(["inspect", str(moved / "checkpoints" / str(stopped))]) == 0
  assert "unet" in capsys.readouterr().out


def test_processes_with_different_runs_end_with_the_difference(tmp_path):
  arguments = [[], ["--config.seed=1"]]
  with Processes(tmp_path / "run", count=2, devices=1, log=tmp_path, arguments=arguments) as run:
    assert run.statuses() == [2, 2], run.output()
  assert "process 1 has another run than process 0" in run.output()
  assert "config.seed: 0 in process 0, 1 here" in run.output()
  assert Checkpoints(tmp_path / "run" / "checkpoints", keep=1).latest() is None
