"""Pictures of samples and plots of scores."""

import io
import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import Interval, plots


def opened(png, mode="RGB"):
  return np.asarray(Image.open(io.BytesIO(png)).convert(mode)).astype(int)


def colour(text):
  return tuple(bytes.fromhex(text[1:]))


def tiles(picture, size, shape):
  """The tiles of a grid, found as the equally spaced squares of its right lower corner."""
  rows, columns, scale = *shape, size // 2
  step, margin = size + scale, 4 * scale
  height, width, _ = picture.shape
  top, left = height - margin - rows * step + scale, width - margin - columns * step + scale
  return {
    (r, c): picture[top + r * step :, left + c * step :][:size, :size]
    for r, c in itertools.product(range(rows), range(columns))
  }


def spotted(rows, columns):
  """2x2 images, blank but for one full pixel whose place depends on row and column."""
  images = np.full((rows, columns, 2, 2, 1), -1.0)
  for r, c in itertools.product(range(rows), range(columns)):
    images[r, c, r % 2, c % 2] = 1
  return images


def test_a_grid_shows_each_pixel_as_an_exact_square_at_its_place():
  found = tiles(opened(plots.grid(spotted(2, 3), ["a", "b"], scale=6)), 12, (2, 3))
  for (r, c), tile in found.items():
    expected = np.full((2, 2, 3), colour(plots.PAPER))
    expected[r % 2, c % 2] = colour(plots.INK)
    np.testing.assert_array_equal(tile, expected.repeat(6, axis=0).repeat(6, axis=1))


def test_grey_levels_lie_between_paper_and_ink_and_are_clipped():
  levels = np.array([-7.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2, 1)
  tile = tiles(opened(plots.grid(levels, ["x"], scale=4)), 8, (1, 1))[0, 0][::4, ::4]
  middle = (np.array(colour(plots.PAPER)) + colour(plots.INK)) / 2
  expected = [colour(plots.PAPER), colour(plots.PAPER), middle, colour(plots.INK)]
  np.testing.assert_allclose(tile.reshape(4, 3), expected, atol=1)


def test_a_comparison_puts_the_models_side_by_side_at_one_height():
  first, second = spotted(2, 2), -spotted(2, 2)
  names = ("reference", "other")
  both = opened(
    plots.comparison(
      [plots.Panel(n, "", x) for n, x in zip(names, (first, second), strict=True)],
      ["a", "b"],
      scale=12,
    )
  )
  alone = opened(plots.comparison([plots.Panel(names[1], "", second)], ["a", "b"], scale=12))
  assert both.shape[0] == alone.shape[0]
  assert both.shape[1] > alone.shape[1]


def test_the_picture_is_written_where_it_is_asked_for(tmp_path):
  png = plots.grid(spotted(1, 1), ["a"], path=tmp_path / "grid.png")
  assert (tmp_path / "grid.png").read_bytes() == png


def test_frames_say_whether_the_heavier_image_was_preferred():
  images = np.full((2, 2, 8, 8, 1), -1.0)
  for flipped, frame in ((False, plots.LIGHT.winner), (True, plots.LIGHT.loser)):
    picture = opened(plots.pairs(images, np.array([flipped, flipped])))
    others = {colour(plots.LIGHT.winner), colour(plots.LIGHT.loser)} - {colour(frame)}
    present = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert colour(frame) in present
    assert not others & present


@pytest.mark.parametrize(
  ("images", "labels", "message"),
  [
    (np.zeros((2, 2, 8, 8)), ["a", "b"], r"one shape \[R, C, H, W, 1\]"),
    (np.zeros((2, 2, 8, 8, 3)), ["a", "b"], r"one shape \[R, C, H, W, 1\]"),
    (np.zeros((2, 2, 8, 8, 1)), ["a"], "1 row labels for 2 rows"),
    (np.zeros((1, 1, 8, 8, 1)), ["zéro"], "'zéro' is not ASCII"),
    (np.full((1, 1, 8, 8, 1), np.nan), ["a"], "NaN or infinite pixels"),
  ],
)
def test_what_cannot_be_shown_is_refused(images, labels, message):
  with pytest.raises(InputError, match=message):
    plots.grid(images, labels)


def test_panels_of_different_shape_cannot_be_compared():
  panels = [plots.Panel("a", "", spotted(1, 2)), plots.Panel("b", "", spotted(1, 3))]
  with pytest.raises(InputError, match="must hold images of one shape"):
    plots.comparison(panels, ["x"])


def test_a_smoothed_constant_is_that_constant_to_its_ends():
  np.testing.assert_allclose(plots.smoothed([3.0] * 200), 3.0)


def test_smoothing_is_the_mean_over_a_centred_window():
  x = np.random.default_rng(0).normal(size=400)
  np.testing.assert_allclose(plots.smoothed(x)[200], x[190:211].mean())
  np.testing.assert_allclose(plots.smoothed(x)[0], x[:11].mean())


def test_the_range_of_curves_holds_every_smoothed_curve_and_the_baseline():
  lines = [np.linspace(1, 2, 100), np.linspace(-3, 0, 100)]
  low, high = plots.curve_limits(lines, baseline=5.0)
  assert low < min(plots.smoothed(x).min() for x in lines)
  assert high > 5


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_plots_are_transparent_and_in_their_themes_colours(theme):
  lines = {"name": (range(20), np.linspace(0, 1, 20), theme.winner)}
  picture = opened(plots.curves(lines, theme=theme, baseline=0.5), "RGBA")
  assert picture[0, 0, 3] == 0
  assert (picture[..., :3][picture[..., 3] == 255] == colour(theme.winner)).all(axis=1).any()


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
