"""One run in several layouts: devices, and real processes on the loopback address."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from dmpo_jax.training.loop import train
from dmpo_jax.training.metrics import read
from tests.training import processes_config
from tests.training.processes import Processes

TWO_BY_TWO = {"count": 2, "devices": 2}


@pytest.fixture(scope="module", autouse=True)
def small_arrays_are_split():
  """As in the processes, whose config sets it."""
  before, processes_config.sharding.SMALLEST = processes_config.sharding.SMALLEST, 64
  yield
  processes_config.sharding.SMALLEST = before


def config(kind, **changes):
  found = processes_config.get_config(kind)
  found.update(changes)
  return found


def weights(folder):
  return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def furthest(one, other):
  """The largest difference in any array, relative to the largest element of that array."""
  assert one.keys() == other.keys()
  return max(np.abs(one[k] - other[k]).max() / np.abs(one[k]).max() for k in one)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
  """Of each layout: the gradient of the first step, and its metrics."""
  root = tmp_path_factory.mktemp("gradients")
  layouts = {
    "one": {"num_devices": 1},
    "four": {"num_devices": 4, "mesh": {"fsdp": 2}},
  }
  for name, changes in layouts.items():
    train(config("gradient", **changes), root / name, show_progress=False)
  arguments = ["--config.mesh.fsdp=2"]
  with Processes(
    root / "processes", **TWO_BY_TWO, log=root, arguments=arguments, kind="gradient"
  ) as run:
    assert run.statuses() == [0, 0], run.output()
  return {p.name: (weights(p / "pipeline"), read(p)[0]) for p in root.iterdir() if p.is_dir()}


@pytest.mark.parametrize("layout", ["four", "processes"])
def test_loss_and_gradients_are_those_of_one_device(gradients, layout):
  (one, row), (other, other_row) = gradients["one"], gradients[layout]
  print(layout, furthest(one, other), {k: abs(row[k] / other_row[k] - 1) for k in row if row[k]})
  assert furthest(one, other) < 1e-5
  for name in ("loss", "gradient_norm", "policy_w"):
    np.testing.assert_allclose(other_row[name], row[name], rtol=1e-5)
