"""Grids of samples and preference pairs."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import image_grids
from dmpo_jax.evaluation.plots import LIGHT

PAPER, INK = "#ffffff", "#14161c"


def opened(png, mode="RGB"):
  return np.asarray(Image.open(io.BytesIO(png)).convert(mode)).astype(int)


def colour(text):
  return tuple(bytes.fromhex(text[1:]))


def tiles(picture, size, shape):
  """Tiles of a grid, counted from its lower right corner."""
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
  grid = tiles(
    opened(image_grids.grid(spotted(2, 3), ["a", "b"], scale=6, colours=(PAPER, INK))), 12, (2, 3)
  )
  for (r, c), tile in grid.items():
    expected = np.full((2, 2, 3), colour(PAPER))
    expected[r % 2, c % 2] = colour(INK)
    np.testing.assert_array_equal(tile, expected.repeat(6, axis=0).repeat(6, axis=1))


def test_grey_levels_lie_between_the_two_colours_and_are_clipped():
  levels = np.array([-7.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2, 1)
  tile = tiles(opened(image_grids.grid(levels, ["x"], scale=4, colours=(PAPER, INK))), 8, (1, 1))[
    0, 0
  ][::4, ::4]
  middle = (np.array(colour(PAPER)) + colour(INK)) / 2
  expected = [colour(PAPER), colour(PAPER), middle, colour(INK)]
  np.testing.assert_allclose(tile.reshape(4, 3), expected, atol=1)


def test_a_comparison_puts_the_models_side_by_side_at_one_height():
  first, second = spotted(2, 2), -spotted(2, 2)
  names = ("reference", "other")
  both = opened(
    image_grids.comparison(
      [image_grids.Panel(n, "", x) for n, x in zip(names, (first, second), strict=True)],
      ["a", "b"],
      scale=12,
    )
  )
  alone = opened(
    image_grids.comparison([image_grids.Panel(names[1], "", second)], ["a", "b"], scale=12)
  )
  assert both.shape[0] == alone.shape[0]
  assert both.shape[1] > alone.shape[1]


def test_the_png_is_written_to_the_path(tmp_path):
  png = image_grids.grid(spotted(1, 1), ["a"], path=tmp_path / "grid.png")
  assert (tmp_path / "grid.png").read_bytes() == png


def test_the_frame_shows_whether_the_image_with_the_higher_score_is_preferred():
  images = np.full((2, 2, 8, 8, 1), -1.0)
  for scores, frame in (((0.4, 0.3), LIGHT.preferred), ((0.3, 0.4), LIGHT.rejected)):
    picture = opened(image_grids.pairs(images, np.array([scores, scores])))
    others = {colour(LIGHT.preferred), colour(LIGHT.rejected)} - {colour(frame)}
    present = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert colour(frame) in present
    assert not others & present


@pytest.mark.parametrize(
  ("images", "labels", "message"),
  [
    (np.zeros((2, 2, 8, 8)), ["a", "b"], r"one shape \[R, C, H, W, 1 or 3\]"),
    (np.zeros((2, 2, 8, 8, 2)), ["a", "b"], r"one shape \[R, C, H, W, 1 or 3\]"),
    (np.zeros((2, 2, 8, 8, 1)), ["a"], "1 row labels for 2 rows"),
    (np.zeros((1, 1, 8, 8, 1)), ["zéro"], "'zéro' is not ASCII"),
    (np.full((1, 1, 8, 8, 1), np.nan), ["a"], "NaN or infinite pixels"),
  ],
)
def test_images_that_cannot_be_shown_are_refused(images, labels, message):
  with pytest.raises(InputError, match=message):
    image_grids.grid(images, labels)


def test_colours_are_shown_as_they_are():
  images = np.zeros((1, 1, 2, 2, 3))
  images[..., 0], images[..., 1] = 1, -1
  tile = tiles(opened(image_grids.grid(images, ["x"], scale=4)), 8, (1, 1))[0, 0]
  np.testing.assert_allclose(tile, np.broadcast_to([255, 0, 128], tile.shape), atol=1)


def test_panels_may_differ_in_their_number_of_columns():
  few, many = (
    opened(
      image_grids.comparison(
        [image_grids.Panel("", "", spotted(1, n)), image_grids.Panel("", "", spotted(1, 2))], ["x"]
      )
    )
    for n in (1, 4)
  )
  assert many.shape[1] - few.shape[1] == 3 * (2 * 5 + 5)


def test_panels_of_different_rows_cannot_be_compared():
  panels = [image_grids.Panel("a", "", spotted(1, 2)), image_grids.Panel("b", "", spotted(2, 2))]
  with pytest.raises(InputError, match="must hold images of one shape"):
    image_grids.comparison(panels, ["x"])
