"""Whole runs: what they leave behind, killed and not, and what stops them."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmpo_jax import data, interop
from dmpo_jax.common.ranges import Interval
from dmpo_jax.training import config_ranges, goodput
from dmpo_jax.training.export import export
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.run import train
from tests.training.rows import computed
from tests.training.tiny import pairs_config

WORKER = """
import pathlib, sys
sys.path.insert(0, {root!r})
from tests.training.tiny import pairs_config
from dmpo_jax.training.run import train
config = pairs_config({pipeline!r})
config.num_steps, config.checkpoint.every = 24, 3
train(config, pathlib.Path(sys.argv[1]), show_progress=False)
"""


def _weights(folder: pathlib.Path) -> dict:
  return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_metrics_events_checkpoints_and_a_pipeline(finished):
  rows = read(finished)
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert all(np.isfinite(value) for row in rows for value in row.values())
  events = EventAccumulator(str(finished / "tensorboard")).Reload()
  losses = [(event.step, event.value) for event in events.Scalars("loss")]
  np.testing.assert_allclose(losses, [(row["step"], row["loss"]) for row in rows], rtol=1e-6)
  assert sorted(p.name for p in (finished / "checkpoints").iterdir() if p.name.isdigit()) == [
    "4",
    "6",
  ]
  assert "tokenizer" in interop.load_pipeline(finished / "pipeline").tokenizers


def test_the_first_row_stands_where_policy_equals_reference(finished):
  first = read(finished)[0]
  np.testing.assert_allclose(first["loss"], -np.log(4 * 0.01 * 0.99) / 2, rtol=1e-6)
  assert (first["logit"], first["accuracy"]) == (0, 0.5)


def test_a_complete_run_started_again_changes_nothing(finished, pipeline):
  before = {
    p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != "lock"
  }
  result = train(pairs_config(pipeline), finished, show_progress=False)
  after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != "lock"}
  assert before == after
  assert result.steps == 6


def test_the_frozen_text_encoder_is_exported_as_it_was(finished, pipeline):
  file = pathlib.Path("text_encoder") / "model.safetensors"
  before, after = load_file(pipeline / file), load_file(finished / "pipeline" / file)
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_last_parameters_can_be_exported_beside_the_ema(finished, tmp_path):
  assert export(finished, tmp_path / "ema") == 6
  assert export(finished, tmp_path / "last", weights="last") == 6
  ema, last = _weights(tmp_path / "ema"), _weights(tmp_path / "last")
  wanted = _weights(finished / "pipeline")
  assert all(np.array_equal(wanted[name], ema[name]) for name in wanted)
  assert any(not np.array_equal(wanted[name], last[name]) for name in wanted)


def test_a_different_run_in_the_same_directory_is_refused(finished, pipeline):
  config = pairs_config(pipeline)
  config.loss.alpha = 0.2
  with pytest.raises(ValueError, match=r"(?s)different run.*loss\.alpha: 0\.01 there, 0\.2 here"):
    train(config, finished, show_progress=False)


def test_a_run_and_its_pipeline_may_be_moved(pipeline, tmp_path):
  config = pairs_config(shutil.copytree(pipeline, tmp_path / "before"))
  config.num_steps = 2
  first = train(config, tmp_path / "run", show_progress=False)
  (tmp_path / "before").rename(tmp_path / "after")
  config.pipeline = str(tmp_path / "after")
  (tmp_path / "run").rename(tmp_path / "moved")
  again = train(config, tmp_path / "moved", show_progress=False)
  assert again == first._replace(pipeline=tmp_path / "moved" / "pipeline")


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(pipeline, tmp_path):
  config = pairs_config(pipeline)
  config.batch_size, config.num_devices = 5, 4
  with pytest.raises(ValueError, match=r"batch_size 5 does not divide over 4 devices"):
    train(config, tmp_path / "run", show_progress=False)


def test_a_pipeline_that_the_run_would_overwrite_is_refused(finished):
  config = pairs_config(finished / "pipeline")
  with pytest.raises(
    ValueError, match=r"lies in the work directory .* would be the trained policy"
  ):
    train(config, finished, show_progress=False)


def test_a_pipeline_with_other_weights_is_refused_as_another_reference(
  finished, pipeline, tmp_path
):
  workdir = shutil.copytree(finished, tmp_path / "run")
  config = pairs_config(shutil.copytree(finished / "pipeline", tmp_path / "pipeline"))
  config.num_steps = 8
  with pytest.raises(
    ValueError, match=r"(?s)base_weights: .* there.*would not be the initial policy"
  ):
    train(config, workdir, show_progress=False)


def test_checkpoints_without_run_json_are_refused(finished, pipeline, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  (workdir / "run.json").unlink()
  config = pairs_config(pipeline)
  config.num_steps = 8
  with pytest.raises(ValueError, match=r"checkpoints without the run\.json"):
    train(config, workdir, show_progress=False)


def test_a_checkpoint_of_a_run_with_other_base_weights_is_refused(finished, pipeline, tmp_path):
  # As finished, but for what the pipeline holds.
  other = shutil.copytree(pipeline, tmp_path / "pipeline")
  file = other / "unet" / "diffusion_pytorch_model.safetensors"
  tensors = load_file(file)
  tensors["conv_in.bias"] = tensors["conv_in.bias"] + np.float32(1e-3)
  save_file(tensors, file)
  config = pairs_config(other)
  config.num_steps = 2
  train(config, tmp_path / "run", show_progress=False)
  shutil.copytree(finished / "checkpoints" / "4", tmp_path / "run" / "checkpoints" / "4")
  config.num_steps = 8
  with pytest.raises(ValueError, match="belongs to a different run"):
    train(config, tmp_path / "run", show_progress=False)


def test_an_alpha_out_of_range_leaves_the_directory_without_run_json(pipeline, tmp_path):
  config = pairs_config(pipeline)
  config.loss.alpha = 0.7
  with pytest.raises(ValueError, match="alpha must be"):
    train(config, tmp_path / "run", show_progress=False)
  assert not (tmp_path / "run" / "run.json").exists()


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no pipeline"):
    train(pairs_config(str(tmp_path)), tmp_path / "run", show_progress=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_examples(
  pipeline, tmp_path, monkeypatch
):
  anything = Interval(0, math.inf)  # a rate that no config may have
  monkeypatch.setitem(config_ranges.RANGES, "optimizer.learning_rate", anything)
  config = pairs_config(pipeline)
  config.optimizer.update(learning_rate=1e30, warmup_steps=3, weight_decay=0.0)
  config.num_steps, config.checkpoint.every = 12, 1
  with pytest.raises(ValueError, match=r"step (\d+): .*not finite \(examples with ids \[\d+"):
    train(config, tmp_path / "run", show_progress=False)
  rows = read(tmp_path / "run")
  assert 0 < len(rows) < 12
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert export(tmp_path / "run", tmp_path / "out") == rows[-1]["step"]
  assert all(np.all(np.isfinite(x)) for x in _weights(tmp_path / "out").values())


def test_long_captions_are_cut_counted_and_reported(pipeline, tmp_path, monkeypatch):
  def wordy(*, num_pairs, temperature, seed):
    examples = data.DATASETS["digit_pairs"](num_pairs=num_pairs, temperature=temperature, seed=seed)
    long = [f"{caption} and again {caption}" for caption in examples.captions[:4]]
    return dataclasses.replace(examples, captions=long + examples.captions[4:])

  monkeypatch.setitem(data.DATASETS, "wordy", wordy)
  config = pairs_config(pipeline)
  config.num_steps, config.data.name = 2, "wordy"
  result = train(config, tmp_path / "run", show_progress=False)
  assert result.captions_truncated == 4
  assert json.loads((tmp_path / "run" / "run.json").read_text())["captions_truncated"] == 4


def _start(workdir: pathlib.Path, pipeline: pathlib.Path) -> subprocess.Popen:
  code = WORKER.format(root=str(pathlib.Path(__file__).parents[2]), pipeline=str(pipeline))
  return subprocess.Popen(
    [sys.executable, "-c", code, str(workdir)], stderr=subprocess.PIPE, text=True, env=os.environ
  )


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(pipeline, tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  worker = _start(whole, pipeline)
  assert worker.wait(timeout=300) == 0, worker.stderr.read()
  kills = 0
  for rows_before_kill in (5, 13, 20):  # at the least; checkpoints fall on multiples of three
    worker = _start(killed, pipeline)
    while worker.poll() is None and len(read(killed)) < rows_before_kill:
      time.sleep(0.002)
    if worker.poll() is None:
      worker.send_signal(signal.SIGKILL)
      kills += 1
    worker.wait(timeout=60)
    worker.stderr.close()
  assert kills == 3
  worker = _start(killed, pipeline)
  assert worker.wait(timeout=300) == 0, worker.stderr.read()
  record = goodput.read(killed)
  seconds = record["seconds"]
  assert (record["starts"], record["step"]) == (4, 24)
  assert all(value > 0 for value in seconds.values())  # each part occurs, lost work too
  assert sum(seconds.values()) == pytest.approx(record["updated"] - record["first_start"], abs=0.1)
  assert computed(killed) == computed(whole)
  for kind in ("ema", "last"):
    folders = [tmp_path / f"{name}-{kind}" for name in ("whole", "killed")]
    for workdir, folder in zip((whole, killed), folders, strict=True):
      assert export(workdir, folder, weights=kind) == 24
    one, other = map(_weights, folders)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_two_processes_cannot_train_in_one_directory(pipeline, tmp_path):
  worker = _start(tmp_path / "run", pipeline)
  try:
    while worker.poll() is None and not read(tmp_path / "run"):
      time.sleep(0.01)
    config = pairs_config(pipeline)
    with pytest.raises(ValueError, match="another process is training"):
      train(config, tmp_path / "run", show_progress=False)
  finally:
    worker.kill()
    worker.wait()
