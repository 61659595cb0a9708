"""The benchmark of data measures what it says, at a size of seconds."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import data as benchmark

from dmpo_jax.data import PairSource


def test_made_up_pairs_are_converted_and_loaded(tmp_path):
  size = benchmark.make_source(tmp_path / "source", 4, 32)
  assert benchmark.time_convert(tmp_path / "source", tmp_path / "out", 4, 1) > 0
  assert size > 0
  found = benchmark.time_load(tmp_path / "out", 16, 2, 0.01)
  assert min(found["threads"], found["one_thread"]) > 0


def test_the_epoch_to_resume_is_a_whole_data_set(tmp_path):
  benchmark.make_epoch(tmp_path / "epoch", 48)
  assert len(PairSource(tmp_path / "epoch", "train")) == 48
  found = benchmark.time_resume(tmp_path / "epoch", 4, 1)
  assert found["total"] == pytest.approx(sum(v for k, v in found.items() if k != "total"))
