"""The benchmark of cached latents, at a size of seconds."""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import cache_latents as benchmark
import synthetic_pairs

OPTIONS = argparse.Namespace(pairs=4, batch_size=2, seconds=0.01, side=512)


def test_random_latents_are_written_read_and_described(tmp_path):
  synthetic_pairs.make_source(tmp_path / "source", 4, 32)
  synthetic_pairs.time_convert(tmp_path / "source", tmp_path / "pairs", 4, 1)
  size = benchmark.Size(latents=4, width=6, pooled=5)
  figures = benchmark.measure_size(tmp_path / "pairs", tmp_path / "out", size, "float16", OPTIONS)
  assert figures["bytes_per_pair"] > 0
  assert 0 < figures["errors"]["mean"]["rms"] < 2.0**-11
  assert figures["read"]["pairs_per_second"] > 0
  cache = {"pairs_per_second": 0.5, "device": "1 x cpu"}
  lines = benchmark.describe({"cache": cache, "sizes": {"small, float16": figures}}, OPTIONS)
  assert "512 px, SD1.5's networks, 1 x cpu: 0.5 pairs/s" in lines[0]
  assert "x goal (120)" in lines[1]


def test_the_networks_are_those_of_stable_diffusion():
  assert sum(x.size for x in benchmark.leaves("vae")) == 83_653_863
  assert sum(x.size for x in benchmark.leaves("text_encoder")) == 123_060_480
