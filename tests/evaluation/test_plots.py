"""Plots of scores and training curves."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import plots
from dmpo_jax.evaluation.statistics import Interval


def opened(png, mode="RGB"):
  return np.asarray(Image.open(io.BytesIO(png)).convert(mode)).astype(int)


def colour(text):
  return tuple(bytes.fromhex(text[1:]))


def test_a_smoothed_constant_is_that_constant_to_its_ends():
  np.testing.assert_allclose(plots.smoothed([3.0] * 200), 3.0)


def test_smoothing_is_the_mean_over_a_centred_window():
  x = np.random.default_rng(0).normal(size=400)
  np.testing.assert_allclose(plots.smoothed(x)[200], x[190:211].mean())
  np.testing.assert_allclose(plots.smoothed(x)[0], x[:11].mean())


def test_the_range_of_curves_contains_every_smoothed_curve_and_the_baseline():
  lines = [np.linspace(1, 2, 100), np.linspace(-3, 0, 100)]
  low, high = plots.curve_limits(lines, baseline=5.0)
  assert low < min(plots.smoothed(x).min() for x in lines)
  assert high > 5


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_plots_are_transparent_and_in_their_themes_colours(theme):
  lines = {"name": (range(20), np.linspace(0, 1, 20), theme.preferred)}
  picture = opened(plots.curves(lines, theme=theme, baseline=0.5), "RGBA")
  assert picture[0, 0, 3] == 0
  assert (picture[..., :3][picture[..., 3] == 255] == colour(theme.preferred)).all(axis=1).any()


def test_one_histogram_is_drawn_as_well_as_several():
  one = opened(plots.histograms({"a": ([0.1, 0.2], "#ff0000")}, theme=plots.LIGHT))
  two = opened(
    plots.histograms(
      {"a": ([0.1, 0.2], "#ff0000"), "b": ([0.3], "#0000ff")}, theme=plots.LIGHT, behind=[0.1]
    )
  )
  assert two.shape[0] > one.shape[0]


def test_a_plot_of_intervals_is_the_same_each_time():
  def draw():
    value = Interval(0.5, 0.4, 0.6)
    return plots.intervals(["a"], [value], ["#ff0000"], baseline=0.5, theme=plots.LIGHT)

  assert draw() == draw()


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
  for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "matplotlib", None)  # python's own way to bar an import
  with pytest.raises(InputError, match=r"pip install 'dmpo-jax\[quickstart\]'"):
    plots.histograms({"a": ([0.1], "#ff0000")}, theme=plots.LIGHT)
