"""Images as CLIP's and BLIP's image encoders take them: resized, cropped, normalised."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dmpo_jax.errors import InputError, short

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# Taps of a bicubic filter beside its centre, and its sharpness with and without antialiasing.
SUPPORT, SHARP, SMOOTH = 2.0, -0.75, -0.5
CROPS = ("transformers", "torchvision")


class Preprocessing(NamedTuple):
  """How images become inputs of an image encoder.

  The shorter side is resized to `size` by a bicubic filter, and the middle square is cut out.

  Attributes:
    size: Height and width of the result.
    tensor: False: Pillow resizes 8-bit images (PickScore, ImageReward, LAION, OpenAI). True: float
      images are resized as torchvision resizes tensors, without rounding and clipping (HPS).
    antialias: Of `tensor`: whether the filter widens where the image shrinks. torchvision before
      0.17 did not do so by default. Pillow always does.
    crop: Where an odd number of rows is cut off: "transformers" cuts fewer from the top;
      "torchvision" rounds half of them to the nearest even number.
    mean: Mean of the channels.
    std: Standard deviation of the channels.
  """

  size: int
  tensor: bool = False
  antialias: bool = True
  crop: str = "transformers"
  mean: tuple[float, float, float] = MEAN
  std: tuple[float, float, float] = STD

  def crop_of(self, image: np.ndarray) -> np.ndarray:
    """The resized and cropped image.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      `[size, size, 3]`: uint8, or with `tensor` float32 in about [0, 1].

    Raises:
      InputError: `crop` is not one of `CROPS`.
    """
    if self.crop not in CROPS:
      raise InputError(f"crop is {short(self.crop)}; expected {' or '.join(CROPS)}")
    height, width = image.shape[:2]
    short_side = min(height, width)
    rows, columns = (int(self.size * side / short_side) for side in (height, width))
    top, left = (self._margin(side) for side in (rows, columns))
    middle = slice(top, top + self.size), slice(left, left + self.size)
    if self.tensor:
      x = image.astype(np.float32) / 255
      vertical = _weights(height, rows, self.antialias)[middle[0]]
      horizontal = _weights(width, columns, self.antialias)[middle[1]]
      return np.einsum("ih,hwc,jw->ijc", vertical, x, horizontal, optimize=True)
    if (rows, columns) != (height, width):
      resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
      image = np.asarray(resized)
    return np.ascontiguousarray(image[middle])

  def _margin(self, side: int) -> int:
    cut = side - self.size
    return cut // 2 if self.crop == "transformers" else round(cut / 2)

  def normalise(self, crops: jax.Array) -> jax.Array:
    """Float32 images `[..., size, size, 3]` of mean 0 and deviation 1 from those of `crop_of`."""
    x = crops.astype(jnp.float32)
    if crops.dtype == jnp.uint8:
      x = x / 255
    axes = (1,) * (crops.ndim - 1)
    mean, std = (jnp.asarray(v, jnp.float32).reshape(*axes, 3) for v in (self.mean, self.std))
    return (x - mean) / std


@functools.lru_cache(maxsize=64)
def _weights(inputs: int, outputs: int, antialias: bool) -> np.ndarray:
  """Bicubic resampling as a matrix, float32 `[outputs, inputs]`.

  Output i lies at scale (i + 1/2) - 1/2 of the input, scale = inputs / outputs. Its weights are

      f(d) = (a + 2)|d|³ - (a + 3)|d|² + 1          for |d| <= 1
             a|d|³ - 5a|d|² + 8a|d| - 4a            for 1 < |d| < 2

  of the distances d. Without antialiasing a = -3/4, and pixels beyond an edge repeat it. With it,
  a = -1/2, distances are divided by scale where it exceeds 1, pixels beyond an edge are left out,
  and weights are divided by their sum.

  Source: torch.nn.functional.interpolate, which torchvision calls.
  """
  scale = inputs / outputs
  a = SMOOTH if antialias else SHARP
  stretch = max(scale, 1.0) if antialias else 1.0
  # torch computes positions in float32; in large images other roundings would show.
  half = np.float32(0.5)
  centres = np.float32(scale) * (np.arange(outputs, dtype=np.float32) + half) - half
  if antialias:
    taps = np.arange(inputs)[None].repeat(outputs, 0)
  else:
    taps = np.floor(centres)[:, None].astype(int) + np.arange(-1, 3)[None]
  d = np.abs(taps - centres[:, None]) / stretch
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
  weights = np.where(d <= 1, near, np.where(d < SUPPORT, far, 0.0))
  if antialias:
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
  matrix = np.zeros((outputs, inputs))
  rows = np.arange(outputs)[:, None].repeat(taps.shape[1], 1)
  np.add.at(matrix, (rows, np.clip(taps, 0, inputs - 1)), weights)
  return matrix.astype(np.float32)
