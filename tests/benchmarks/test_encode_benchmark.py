"""The benchmark of encoding measures what it says, at a size of seconds."""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import data
import encode as benchmark

OPTIONS = argparse.Namespace(pairs=4, batch_size=2, seconds=0.01, side=512)


def test_made_up_codes_are_written_read_and_told_in_words(tmp_path):
  data.make_source(tmp_path / "source", 4, 32)
  data.time_convert(tmp_path / "source", tmp_path / "pairs", 4, 1)
  size = benchmark.Size(latents=4, width=6, pooled=5)
  found = benchmark.measure_size(tmp_path / "pairs", tmp_path / "out", size, "float16", OPTIONS)
  assert found["bytes_per_pair"] > 0
  assert 0 < found["errors"]["mean"]["rms"] < 2.0**-11
  assert found["read"]["pairs_per_second"] > 0
  encoded = {"pairs_per_second": 0.5, "device": "1 x cpu"}
  shown = benchmark.tell({"encode": encoded, "sizes": {"small, float16": found}}, OPTIONS)
  assert "512 px, SD1.5's networks, 1 x cpu: 0.5 pairs/s" in shown[0]
  assert "x goal (120)" in shown[1]


def test_the_networks_are_those_of_stable_diffusion():
  assert sum(x.size for x in benchmark.leaves("vae")) == 83_653_863
  assert sum(x.size for x in benchmark.leaves("text_encoder")) == 123_060_480
