"""The benchmarks of saves and of conversions on many machines, without their measurements."""

import pathlib
import queue
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import convert_machines
import saves

from dmpo_jax.data import PairSource, tfds_folder
from dmpo_jax.data.convert import source_reader
from dmpo_jax.data.convert.options import Options


def test_a_task_of_the_array_converts_pairs_in_pick_a_pics_columns(tmp_path):
  total = convert_machines.write_source(tmp_path / "source", 4, 32, 2_000, group=2)
  source = source_reader.find("pickapic", tmp_path / "source")
  results, options = queue.Queue(), Options(rows_per_shard=2)
  for host in (1, 0):
    convert_machines._work(
      source, tmp_path / "out", options, host, 2, threading.Barrier(1), results
    )
  assert results.qsize() == 2
  assert len(PairSource(tmp_path / "out", "train")) == 4
  stored = sum(
    file["bytes"] for file in tfds_folder.check_files(tmp_path / "out")["files"].values()
  )
  assert total < stored


def test_machine_hours_are_core_hours_over_cores():
  one, two = (convert_machines.estimate(0.01, cores) for cores in (1, 2))
  assert one["machine_hours"] == 2 * two["machine_hours"] == pytest.approx(959_040 / 360_000)
  assert two["megabytes_per_second"] == pytest.approx(322e9 / (959_040 * 0.01 / 2) / 1e6)


def test_what_a_save_costs_is_described_by_its_ratio():
  result = {
    "bytes": 5e7,
    "step_seconds": {"none": 0.5},
    "ratio": {"background": 1.02, "waited for": 1.1},
    "seconds_per_save": {"background": 0.1, "waited for": 0.5},
    "wait_seconds": {"background": 0.05, "waited for": 0.5},
  }
  text = "\n".join(saves.lines(result, 10))
  assert "checkpoints of 50.0 MB every 10 steps of 0.500 s" in text
  assert "background: a step takes 1.020 of one without saves; a save costs 0.10 s" in text
