"""The table of positions of an MMDiT's patches: sines and cosines of two coordinates.

    P[y, x] = [e(p_x), e(p_y)],   e(p) = [sin(p w), cos(p w)],   w_k = 10000^(-k / (C/4)),
    p_i = first + i step,   i = 0, 1, ... M - 1

An image of h x w patches reads the h x w positions in the middle of the table. diffusers stores the
table in the weights; here it is computed. diffusers computes it with first = 0 and step =
(sample_size // patch_size) / M, but a network may be trained with another one, which its file then
has. So a stored table is compared with the computed one, and its positions are recovered.

Source: arXiv 2403.03206, appendix; diffusers' PatchEmbed and get_2d_sincos_pos_embed (0.42).
"""

import fractions
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dmpo_jax.errors import InputError

# Largest deviation of a stored table from the computed one, by dtype: two roundings of the dtype,
# and the roundings of angles of up to 400 that were computed in float32.
TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 8e-3}
# Steps and offsets are multiples of fractions with small denominators wherever these fit.
LARGEST_DENOMINATOR = 1024


class Positions(NamedTuple):
  """The positions along a side of a table.

  Attributes:
    first: The position of the first patch.
    step: The distance of two neighbours.
    dtype: The dtype to which the table is rounded: the narrowest in which it was ever stored.
  """

  first: float
  step: float
  dtype: str = "float32"


def published(sample_size: int, patch_size: int, count: int) -> Positions:
  """The positions that diffusers computes for a config.

  Args:
    sample_size: Height and width of the config's images in latents.
    patch_size: Height and width of a patch in latents.
    count: Patches along a side of the table, `pos_embed_max_size`.
  """
  return Positions(0.0, (sample_size // patch_size) / count)


def side(positions: Positions, count: int, channels: int) -> np.ndarray:
  """e(p) of all positions along a side, rounded to the dtype: float32 `[count, channels / 2]`.

  Args:
    positions: The positions.
    count: Patches along a side of the table.
    channels: Channels of the table, divisible by 4.
  """
  # As in torch: positions in float32, angles in float64.
  p = (positions.first + positions.step * np.arange(count)).astype(np.float32)
  angles = p[:, None] * _frequencies(channels)[None, :]
  waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
  return waves.astype(jnp.dtype(positions.dtype)).astype(np.float32)


def middle(waves: np.ndarray, length: int) -> np.ndarray:
  """The rows in the middle of `side` for an image of that many patches."""
  start = (len(waves) - length) // 2
  return waves[start : start + length]


def table(positions: Positions, count: int, channels: int, dtype: str | None = None) -> np.ndarray:
  """The table as diffusers stores it, `[1, count * count, channels]`.

  Args:
    positions: The positions.
    count: Patches along a side.
    channels: Channels, divisible by 4.
    dtype: Dtype of the result; None: that of the positions.
  """
  waves = side(positions, count, channels).astype(jnp.dtype(dtype or positions.dtype))
  full = np.empty((count, count, channels), waves.dtype)
  full[:, :, : channels // 2] = waves[None, :, :]
  full[:, :, channels // 2 :] = waves[:, None, :]
  return full.reshape(1, count * count, channels)


def recover(stored: np.ndarray, expected: Positions) -> Positions:
  """The positions of which a stored table is made.

  Args:
    stored: `[1, count * count, channels]`, in its stored dtype.
    expected: The positions of the config.

  Returns:
    The expected positions where the table is made of them, otherwise other ones; with the dtype to
    which the table was rounded.

  Raises:
    InputError: The table is not made of sines and cosines of evenly spaced positions.
  """
  count, channels = round(stored.shape[1] ** 0.5), stored.shape[2]
  grid, dtype = stored.reshape(count, count, channels), stored.dtype.name
  if dtype not in TOLERANCES:
    raise InputError(f"is {dtype}; expected {', '.join(TOLERANCES)}")
  # A table that was once stored in a narrow dtype stays rounded to it in a wider one.
  dtypes = list(TOLERANCES)[list(TOLERANCES).index(dtype) :]
  fitted = _fit(grid[0, :, : channels // 2].astype(np.float32))
  simple = Positions(*(_simple(value) for value in fitted))
  for candidate in (expected, simple, fitted):
    for dtype in dtypes:
      if _agrees(grid, candidate._replace(dtype=dtype), TOLERANCES[dtype]):
        return candidate._replace(dtype=dtype)
  raise InputError(
    "is no table of sines and cosines of evenly spaced positions, as diffusers makes it; "
    "learned tables are not supported. Download the file again if it should have none"
  )


def _frequencies(channels: int) -> np.ndarray:
  """w, float64 `[channels / 4]`."""
  quarter = channels // 4
  return 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)


def _fit(waves: np.ndarray) -> Positions:
  """Evenly spaced positions whose `side` is nearest to a stored one `[count, channels / 2]`."""
  sines, cosines = np.split(waves.astype(np.float64), 2, axis=1)
  phases, frequencies = np.arctan2(sines, cosines), _frequencies(2 * waves.shape[1])
  # The lowest frequency has one period for all positions; each higher one makes them more precise.
  p = phases[:, -1] / frequencies[-1]
  for phase, w in zip(phases.T[::-1], frequencies[::-1], strict=True):
    p = p + (np.mod(phase - p * w + np.pi, 2 * np.pi) - np.pi) / w
  if not np.isfinite(p).all():
    return Positions(0.0, 0.0)
  if len(p) == 1:
    return Positions(float(p[0]), 1.0)
  step, first = np.polyfit(np.arange(len(p)), p, 1)
  return Positions(float(first), float(step))


def _simple(value: float | str) -> float | str:
  """The nearest fraction with a small denominator."""
  if isinstance(value, str):
    return value
  return float(fractions.Fraction(value).limit_denominator(LARGEST_DENOMINATOR))


def _agrees(grid: np.ndarray, positions: Positions, tolerance: float) -> bool:
  """Whether a table `[count, count, channels]` is made of these positions."""
  count, half = grid.shape[1], grid.shape[2] // 2
  waves = side(positions, count, 2 * half)

  def near(row: np.ndarray, wave: np.ndarray) -> bool:
    row = row.astype(np.float32)
    off = np.abs(row[:, :half] - waves).max(), np.abs(row[:, half:] - wave[None, :]).max()
    return bool(off[0] <= tolerance and off[1] <= tolerance)  # false for NaN

  return all(map(near, grid, waves))  # a row at a time: tables take up to a GB
