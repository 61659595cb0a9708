"""A run whose pairs lie on disk."""

import json
import pathlib

import numpy as np
import pytest

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.run import train
from tests.data import sets
from tests.training.tiny import smallest_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Own pairs of colour images in a converted folder: 6 pairs, a tie among them."""
  root = tmp_path_factory.mktemp("own")
  lines = ["prompt,image_0,image_1,label_0"]
  lines += [f"a drawing of {i},{i}.png,{i + 1}.png,{label}" for i, label in enumerate("101001")]
  lines[3] = lines[3][:-1] + "0.5"
  table = sets.custom(root / "source", lines, images=7)
  convert.convert(source_reader.find("custom", table), root / "out", Options(rows_per_shard=4))
  return root / "out"


def config(folder: pathlib.Path, steps: int):
  result = smallest_config()
  with result.unlocked():
    result.data = {
      "name": "pairs",
      "folder": str(folder),
      "size": 8,
      "crop": "random",
      "flip": True,
    }
  result.trained, result.ema_decay = ("unet",), 0.0
  result.num_steps, result.checkpoint.every = steps, 1
  return result


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
  """A complete run of two steps."""
  workdir = tmp_path_factory.mktemp("whole")
  train(config(folder, 2), workdir, show_progress=False)
  return workdir


def test_a_run_learns_from_converted_pairs(whole):
  rows = metrics.read(whole)
  assert [row["step"] for row in rows] == [1, 2]
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert {row["label"] for row in rows} <= {0.875, 1.0}  # of four pairs, with or without the tie


def test_other_pairs_are_another_run(whole, folder):
  assert len(json.loads((whole / "run.json").read_text())["data"]) == 64
  other = config(folder, 3)
  with other.unlocked():
    other.data.ties = "drop"
  with pytest.raises(InputError, match="run"):
    train(other, whole, show_progress=False)
