"""The benchmark of emoji scorers: features, linear judges and its table."""

import pathlib
import sys

import numpy as np
from PIL import Image

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import emoji_scorer as benchmark


def test_logistic_regression_is_at_the_minimum_of_its_loss():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(50, 3)), rng.integers(0, 2, 50)
  w = benchmark.logistic(x, y)
  p = 1 / (1 + np.exp(-x @ w))
  np.testing.assert_allclose(x.T @ (p - y) / 50 + benchmark.RIDGE * w, 0, atol=1e-10)


def test_an_image_of_one_colour_has_all_of_its_pixels_in_one_bin():
  image = np.broadcast_to(np.array([0.9, 0.1, 0.3]), (1, 16, 16, 3))
  shares = benchmark.colours(image)[0]
  assert (shares[3 * 16 + 0 * 4 + 1], shares.sum()) == (1, 1)


def test_linear_judges_find_a_preference_for_red(tmp_path, capsys):
  rng, rows = np.random.default_rng(0), ["prompt,image_0,image_1,label_0"]
  for i in range(60):
    colours = rng.integers(0, 255, (2, 3))
    for side, colour in enumerate(colours.tolist()):
      Image.new("RGB", (16, 16), tuple(colour)).save(tmp_path / f"{i}-{side}.png")
    rows.append(f"p{i},{i}-0.png,{i}-1.png,{int(colours[0, 0] > colours[1, 0])}")
  (tmp_path / "pairs.csv").write_text("\n".join(rows))
  source = source_reader.find("custom", tmp_path / "pairs.csv")
  convert.convert(source, tmp_path / "out", Options(splits={"train": 0.7, "test": 0.3}))
  benchmark.main([str(tmp_path / "out")])
  lines = capsys.readouterr().out.splitlines()
  accuracy = {line.split("|")[1].strip(): line.split("|")[2] for line in lines if "linear" in line}
  assert list(accuracy) == ["linear, pixels", "linear, colours", "linear, hand"]
  assert float(accuracy["linear, pixels"].split("%")[0]) > 85
