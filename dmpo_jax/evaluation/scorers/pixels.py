"""Scores of images by a formula of their pixels."""

from collections.abc import Callable, Sequence

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers.base import Images, Kind, Scorer


def of_pixels(function: Callable[..., np.ndarray]) -> Kind:
  """The scorer of a function of pixels: its name, and the first line of its docstring.

  Args:
    function: `function(images)` returns one number for each of `[..., H, W, 3]` in [-1, 1].

  Returns:
    A `Kind` without weights and options.
  """

  def scores(images: Images, prompts: Sequence[str]) -> np.ndarray:
    return np.array([function(np.asarray(image, np.float64) / 127.5 - 1) for image in images])

  def load(weights: str | None, *, dtype: str, batch_size: int, devices: Sequence | None) -> Scorer:
    return Scorer(function.__name__, scores)

  return Kind(load, (function.__doc__ or "").split("\n")[0])


def colourfulness(images: np.ndarray) -> np.ndarray:
  """Colourfulness of each image: 0 for greys, about 1/2 for a page of pure colours.

      M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)² + mean(yb)²),
      rg = R - G,   yb = (R + G)/2 - B

  with R, G, B in [0, 1], and variances and means over the pixels.

  Args:
    images: `[..., H, W, 3]` in [-1, 1]; values outside are clipped, as an image file clips them.

  Returns:
    float64 `[...]`, >= 0.

  Raises:
    InputError: The shape is wrong, or a value is NaN or infinite.

  Source: D. Hasler and S. Süsstrunk, "Measuring colourfulness in natural images" (2003), with
    levels in [0, 1] instead of [0, 255].
  """
  red, green, blue = _levels(images)
  rg, yb = red - green, (red + green) / 2 - blue
  spread = rg.var(axis=(-2, -1)) + yb.var(axis=(-2, -1))
  centre = rg.mean(axis=(-2, -1)) ** 2 + yb.mean(axis=(-2, -1)) ** 2
  return np.sqrt(spread) + 0.3 * np.sqrt(centre)


def warmth(images: np.ndarray) -> np.ndarray:
  """Warmth of each image: how much more red than blue it has.

      mean over the pixels of (R - B),   R, B in [0, 1]

  Args and errors are those of `colourfulness`.

  Returns:
    float64 `[...]` in [-1, 1].
  """
  red, _, blue = _levels(images)
  return (red - blue).mean(axis=(-2, -1))


def brightness(images: np.ndarray) -> np.ndarray:
  """Mean level of each image.

      mean over the pixels of (R + G + B)/3,   levels in [0, 1]

  Args and errors are those of `colourfulness`.

  Returns:
    float64 `[...]` in [0, 1].
  """
  return sum(_levels(images)).mean(axis=(-2, -1)) / 3


def _levels(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Red, green and blue `[..., H, W]` in [0, 1]."""
  x = np.asarray(images, np.float64)
  if x.ndim < 3 or x.shape[-1] != 3:
    raise InputError(f"images must be [..., H, W, 3], got shape {x.shape}")
  if not np.isfinite(x).all():
    raise InputError(f"{np.count_nonzero(~np.isfinite(x))} of {x.size} values are NaN or infinite")
  red, green, blue = np.moveaxis(np.clip((x + 1) / 2, 0, 1), -1, 0)
  return red, green, blue
