"""Runs whose work directory lies in a bucket: the results of a local run, whatever happens."""

import os
import random
import time

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dmpo_jax.common import local_copies, paths
from dmpo_jax.errors import InputError
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.export import export
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.run import train
from tests import buckets
from tests.flaky_proxy import FlakyProxy
from tests.training.processes import Processes
from tests.training.rows import computed
from tests.training.tiny import pairs_config

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def copies(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(local_copies.FOLDER, str(tmp_path_factory.mktemp("copies")))
    yield


@pytest.fixture(scope="module")
def run(pipeline):
  """Work directory of a complete run in a bucket, from a pipeline in the bucket."""
  folder = buckets.folder()
  (folder / "base").upload_folder(paths.parse(pipeline), last="model_index.json")
  train(pairs_config(folder / "base"), folder / "run", show_progress=False)
  return folder / "run"


def weights(workdir):
  return load_file(paths.local_copy(workdir / "pipeline") / WEIGHTS)


def equal(one, other):
  return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_run_in_a_bucket_has_the_parameters_and_metrics_of_a_local_one(run, finished):
  assert equal(weights(run), weights(finished))
  assert computed(run) == computed(finished)
  assert {"run.json", "summary.json", "goodput.json", "checkpoints/6/commit_success.txt"} <= set(
    run.find()
  )
  assert any(name.startswith("tensorboard/events") for name in run.find())


def test_a_complete_run_in_a_bucket_is_not_trained_again(run):
  before = run.find()
  assert train(pairs_config(run.parent / "base"), run, show_progress=False).steps == 6
  changed = {
    n for n, info in run.find().items() if before.get(n, {}).get("md5Hash") != info["md5Hash"]
  }
  assert {name.split("/")[0] for name in changed} == {"lock"}


def test_the_bucket_of_another_run_is_refused_before_anything_is_compiled(run):
  config = pairs_config(run.parent / "base")
  config.seed = 7
  with pytest.raises(InputError, match=r"gs://.*/run holds a different run:\n.*config.seed"):
    train(config, run, show_progress=False)


def test_a_run_that_is_refused_leaves_nothing_in_the_bucket(run):
  config = pairs_config(run.parent / "base")
  config.batch_size, config.num_devices = 5, 4
  with pytest.raises(InputError, match="batch_size 5 does not divide over 4 devices"):
    train(config, run.parent / "refused", show_progress=False)
  assert not (run.parent / "refused").exists()


def test_torch_diffusers_loads_an_export_after_its_download(run):
  diffusers = pytest.importorskip("diffusers")
  pytest.importorskip("torch")
  assert export(run, run.parent / "exported", weights="last") == 6
  folder = paths.local_copy(run.parent / "exported")
  unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
  ours = load_file(folder / WEIGHTS)
  theirs = {name: value.numpy() for name, value in unet.state_dict().items()}
  assert equal(ours, theirs)


def test_a_save_that_died_between_its_objects_is_never_chosen():
  folder = buckets.folder()
  checkpoints = Checkpoints(folder, keep=None)
  for step in (1, 2):
    checkpoints.save(step, {"x": jnp.full(3, step, jnp.float32)}, {})
  checkpoints.close()
  (folder / "2" / "commit_success.txt").unlink()
  checkpoints = Checkpoints(folder, keep=None)
  assert checkpoints.latest() == 1
  state, _ = checkpoints.restore(1, {"x": jnp.zeros(3)})
  assert state["x"].tolist() == [1, 1, 1]
  checkpoints.save(2, {"x": jnp.full(3, 5.0)}, {})
  checkpoints.wait()
  assert checkpoints.latest() == 2
  checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_killed_at_random_moments_ends_as_a_local_one(tmp_path, count):
  rng, log = random.Random(count), tmp_path / "log"
  start = {"count": count, "devices": 2 // count, "log": log}
  start["arguments"] = ["--config.num_steps=8"]
  whole, killed = tmp_path / "whole", buckets.folder() / "killed"
  with Processes(whole, **start) as run:
    assert run.statuses(300) == [0] * count, run.output()
  kills = 0
  while kills < 2:
    rows = len(read(killed))
    with Processes(killed, **start) as run:
      while len(read(killed)) < rows + rng.randrange(1, 5) and not run.ended():
        time.sleep(0.05)
      time.sleep(rng.random())
      if run.ended():
        break
      for process in run.all:
        process.kill()
      run.statuses(60)
      kills += 1
  with Processes(killed, **start) as run:
    assert run.statuses(300) == [0] * count, run.output()
  assert kills
  assert computed(killed) == computed(whole)
  assert equal(weights(killed), weights(whole))


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_lives_and_not_after_its_death(tmp_path):
  workdir = buckets.folder() / "run"
  start = {"count": 1, "devices": 1, "arguments": ["--config.num_steps=100000"]}
  with Processes(workdir, log=tmp_path / "first", **start) as first:
    while not read(workdir) and not first.ended():
      time.sleep(0.1)
    with Processes(workdir, log=tmp_path / "second", **start) as second:
      assert second.statuses(120) == [2]
    assert f"another process is training in {workdir}" in second.output()
    assert not first.ended()
    first.all[0].kill()
    first.statuses(60)
  rows = len(read(workdir))
  with Processes(workdir, log=tmp_path / "third", **start) as third:
    while len(read(workdir)) <= rows and not third.ended():
      time.sleep(0.1)
    assert not third.ended(), third.output()


@pytest.mark.slow
def test_a_server_that_is_busy_and_then_gone_changes_nothing(tmp_path, monkeypatch):
  workdir, start = buckets.folder() / "run", {"count": 1, "devices": 1}
  start["arguments"] = ["--config.num_steps=6"]
  with Processes(tmp_path / "local", log=tmp_path / "log", **start) as run:
    assert run.statuses(300) == [0], run.output()
  with FlakyProxy(os.environ["STORAGE_EMULATOR_HOST"], every=10) as proxy:
    for name, value in buckets.variables(proxy.url).items():
      monkeypatch.setenv(name, value)
    with Processes(workdir, log=tmp_path / "flaky", **start) as run:
      while not read(workdir) and not run.ended():
        time.sleep(0.1)
      proxy.vanish(20.0)
      assert run.statuses(500) == [0], run.output()
    assert proxy.refused > 5
  monkeypatch.undo()  # this process reads from the server itself
  assert computed(workdir) == computed(tmp_path / "local")
  assert equal(weights(workdir), weights(tmp_path / "local"))
