"""The benchmark of data, at a size of seconds."""

import argparse
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import data as benchmark
import synthetic_pairs

from dmpo_jax.data import PairSource


def test_synthetic_pairs_are_converted_and_loaded(tmp_path):
  size = synthetic_pairs.make_source(tmp_path / "source", 4, 32)
  assert synthetic_pairs.time_convert(tmp_path / "source", tmp_path / "out", 4, 1) > 0
  assert size > 0
  result = benchmark.time_load(tmp_path / "out", 16, 2, 0.01)
  assert min(value for one in result.values() for value in one.values()) > 0


def test_the_epoch_to_resume_is_a_complete_data_set(tmp_path):
  benchmark.make_epoch(tmp_path / "epoch", 48)
  assert len(PairSource(tmp_path / "epoch", "train")) == 48
  result = benchmark.time_resume(tmp_path / "epoch", 4, 1)
  assert result["total"] == pytest.approx(sum(v for k, v in result.items() if k != "total"))


def test_every_measurement_is_described():
  options = argparse.Namespace(side=512, size=0, batch_size=16, step_size=32, epoch=1000)
  results = {
    "convert": {
      "pairs_per_second": {1: 9.0},
      "bytes_per_pair": {"stored": 103.0, "images": 100.0},
    },
    "load": {"threads": {"pairs_per_second": 240.0, "processor_ms": 4.0}},
    "step": {"step_seconds": 2.0, "waited_seconds": 0.01, "fraction": 0.005},
    "resume": {"open": 0.2, "total": 0.5},
  }
  expected = {
    "convert": "1.030 x its encoded images",
    "load": "240 pairs/s, 2.00 x goal (120), 20.0 x one v5e chip; 4.00 ms of processor time per "
    "pair, or 500 pairs/s on 2 cores",
    "step": "2.000 s, of which 10.0 ms (0.5%) waiting for the loader",
    "resume": "0.500 s (open 0.200), 2.00 x goal (1 s)",
  }
  for name, words in expected.items():
    assert words in "\n".join(benchmark.MEASUREMENTS[name].describe(results[name], options))


@pytest.mark.slow
def test_the_loop_waits_for_a_fraction_of_the_step(tmp_path):
  synthetic_pairs.make_source(tmp_path / "source", 4, 32)
  synthetic_pairs.time_convert(tmp_path / "source", tmp_path / "out", 4, 1)

  def smallest(folder, **settings):
    config = benchmark.step_config(folder, **settings)
    config.model.unet.update(
      {"block_out_channels": (8,), "norm_num_groups": 4}
      | {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    )
    return config

  result = benchmark.time_step(
    tmp_path / "out", tmp_path / "run", smallest, size=8, batch_size=2, steps=3
  )
  assert 0 < result["fraction"] < 1
  assert result["fraction"] == pytest.approx(result["waited_seconds"] / result["step_seconds"])
