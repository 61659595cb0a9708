"""Scores of images by a formula of their pixels.

Prompts are an argument of every scorer and have no effect on these.
"""

from collections.abc import Sequence

import numpy as np

from dmpo_jax.errors import InputError


def colourfulness(images: np.ndarray, prompts: Sequence[str] = ()) -> np.ndarray:
  """Colourfulness of each image: 0 for greys, about 1/2 for a page of pure colours.

      M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)² + mean(yb)²),
      rg = R - G,   yb = (R + G)/2 - B

  with R, G, B in [0, 1], and variances and means over the pixels.

  Args:
    images: `[..., H, W, 3]` in [-1, 1]; values outside are clipped, as an image file clips them.
    prompts: Ignored.

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


def warmth(images: np.ndarray, prompts: Sequence[str] = ()) -> np.ndarray:
  """Warmth of each image: how much more red than blue it has.

      mean over the pixels of (R - B),   R, B in [0, 1]

  Args and errors are those of `colourfulness`.

  Returns:
    float64 `[...]` in [-1, 1].
  """
  red, _, blue = _levels(images)
  return (red - blue).mean(axis=(-2, -1))


def brightness(images: np.ndarray, prompts: Sequence[str] = ()) -> np.ndarray:
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
