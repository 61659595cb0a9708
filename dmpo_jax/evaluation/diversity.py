"""Diversity of the images of one prompt, from their features or pixels."""

import numpy as np

from dmpo_jax.errors import InputError


def vendi(features: np.ndarray) -> float:
  """Vendi score of some images: the effective number of different ones.

      V = exp(-Σ λ log λ),  λ the eigenvalues of K/n,  K_ij = cosine of features i and j

  It ranges from 1, where all features have one direction, to n, where they are orthogonal, and
  grows with n: compare only equal n. A feature of 0 is similar to other zeros alone.

  Args:
    features: `[n, d]`, finite.

  Returns:
    The score.

  Raises:
    InputError: The shape is wrong, or a value is not finite.

  Source: arXiv 2210.02410, Definition 1, with a cosine kernel.
  """
  x = _features(features)
  norm = np.linalg.norm(x, axis=1)
  unit = x / np.where(norm > 0, norm, 1)[:, None]
  unit = np.concatenate([unit, (norm == 0)[:, None]], axis=1)  # one axis for features of 0
  values = np.linalg.eigvalsh(unit @ unit.T / len(x))
  values = values[values > 0]  # x log x -> 0; rounding makes some negative
  return float(np.exp(-(values * np.log(values)).sum()))


def cosine_distance(features: np.ndarray) -> float:
  """Mean cosine distance of two images.

      D = mean over i < j of (1 - cos(f_i, f_j))

  Args:
    features: `[n, d]` of norm 1, n >= 2.

  Returns:
    The distance: 0 for equal features, 1 for orthogonal ones, at most 2.

  Raises:
    InputError: There are fewer than two features, the shape is wrong, or a value is not finite.
  """
  x = _features(features, least=2)
  n = len(x)
  return float(1 - (np.square(x.sum(axis=0)).sum() - np.square(x).sum()) / (n * (n - 1)))


def pixel_distance(pixels: np.ndarray) -> float:
  """Mean distance of two images in pixels.

      D = mean over i < j of sqrt(mean over pixels of (x_i - x_j)²)

  Args:
    pixels: `[n, d]` in [0, 1], n >= 2.

  Returns:
    The distance, in [0, 1].

  Raises:
    InputError: There are fewer than two images, the shape is wrong, or a value is not finite.
  """
  x = _features(pixels, least=2)
  distances = [np.sqrt(np.square(x[i + 1 :] - x[i]).mean(axis=1)).sum() for i in range(len(x) - 1)]
  return float(2 * np.sum(distances) / (len(x) * (len(x) - 1)))


def _features(features: np.ndarray, least: int = 1) -> np.ndarray:
  x = np.asarray(features, np.float64)
  if x.ndim != 2 or len(x) < least:
    raise InputError(f"features must be [n, d] with n >= {least}, got shape {list(x.shape)}")
  if not np.isfinite(x).all():
    raise InputError(f"{np.count_nonzero(~np.isfinite(x))} of {x.size} features are not finite")
  return x
