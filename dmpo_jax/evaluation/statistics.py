"""Statistics of scores with 95% intervals, and the diversity of images in pixels."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import diversity

RESAMPLES = 10_000
CHUNK = 2_000_000  # numbers in memory at a time while resampling


class Interval(NamedTuple):
  """An estimate with its confidence interval; as text "0.449 [0.440, 0.458]".

  Attributes:
    value: The statistic of the sample.
    low: Lower end.
    high: Upper end.
  """

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

  def as_percent(self) -> str:
    """The interval of a fraction as percentages: "97.5% [94.4, 100.0]"."""
    value, low, high = (100 * x for x in self)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def bootstrap(
  values: np.ndarray,
  *,
  groups: np.ndarray | None = None,
  statistic: Callable[..., np.ndarray] = np.mean,
  level: float = 0.95,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """Percentile bootstrap interval of a statistic of independent units.

      low, high = the (1 -+ level)/2 quantiles of statistic(values[i]),  i sampled with replacement

  Units must be independent of each other. Several images of one prompt are not, if the prompts
  stand for others: `groups` makes the prompts the units, each with the mean of its values. Where
  the prompts are all that matter, a unit is one (prompt, seed) with noise of its own. If all values
  are equal the interval has no width, although the true rate may still differ by about 3/N (the
  rule of three).

  Args:
    values: One number per unit, `[N]`; with `groups`, one per member of a group.
    groups: Prompt of each value, `[N]`; None: each value is a unit.
    statistic: f(`[R, N]`, axis=1) -> `[R]`, as numpy's reductions are called.
    level: Coverage, in (0, 1).
    resamples: Number of resamples, at least 2000.
    seed: Seed of the resampling.

  Returns:
    `Interval` of float.

  Raises:
    InputError: No value, a value that is not finite, or a number out of range.

  Source: B. Efron, "Bootstrap methods: another look at the jackknife" (1979); percentile method.
  """
  x = _vector("values", values)
  if groups is not None:
    x = group_means(x, groups)
  _check_bootstrap(level, resamples)
  rng = np.random.default_rng(seed)
  resampled = [
    statistic(x[rng.integers(len(x), size=(count, len(x)))], axis=1)
    for count in _chunks(resamples, len(x))
  ]
  return _interval(float(statistic(x[None, :], axis=1)[0]), np.concatenate(resampled), level)


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Mean of the values of each group.

  Args:
    values: `[N]`.
    groups: Group of each value, `[N]`.

  Returns:
    float64, one for each group in the order of `np.unique(groups)`.

  Raises:
    InputError: The lengths differ, there is no value, or one is not finite.
  """
  x, groups = _vector("values", values), np.asarray(groups)
  if groups.shape != x.shape:
    raise InputError(f"groups {groups.shape} must be one for each of the values {x.shape}")
  _, rows = np.unique(groups, return_inverse=True)
  return np.bincount(rows, weights=x) / np.bincount(rows)


def ratio(
  candidate: np.ndarray,
  baseline: np.ndarray,
  *,
  level: float = 0.95,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """Ratio of two means over the same units, with the percentile bootstrap of the units.

      ratio = mean(candidate) / mean(baseline)

  Args:
    candidate: One number per unit, `[N]`.
    baseline: The same units, `[N]`, >= 0.
    level: Coverage, in (0, 1).
    resamples: Number of resamples, at least 2000.
    seed: Seed of the resampling.

  Returns:
    `Interval`; 1 means no difference.

  Raises:
    InputError: Lengths differ, or the baseline is 0 throughout; see also `bootstrap`.
  """
  a, b = _paired(candidate, baseline)
  _check_bootstrap(level, resamples)
  if not b.any():
    raise InputError("the baseline is 0 in all units; there is no ratio to it")
  rng = np.random.default_rng(seed)
  resampled = []
  for count in _chunks(resamples, len(a)):
    rows = rng.integers(len(a), size=(count, len(a)))
    below = b[rows].sum(axis=1)
    resampled.append(a[rows].sum(axis=1)[below > 0] / below[below > 0])
  return _interval(float(a.mean() / b.mean()), np.concatenate(resampled), level)


def wins(candidate: np.ndarray, baseline: np.ndarray) -> np.ndarray:
  """Win (1), loss (0) or tie (1/2) of the candidate against the baseline in each unit.

  Args:
    candidate: Scores, one per (caption, seed), `[N]`.
    baseline: Scores of the same captions and seeds in the same order, `[N]`.

  Returns:
    float64 `[N]`: 1 where it is higher, 0 where it is lower, 1/2 on a tie.

  Raises:
    InputError: Lengths differ, there is no value, or one is not finite.
  """
  a, b = _paired(candidate, baseline)
  return np.where(a > b, 1.0, np.where(a < b, 0.0, 0.5))


def win_rate(candidate: np.ndarray, baseline: np.ndarray, **settings) -> Interval:
  """Fraction of units in which the candidate scores higher; a tie counts one half.

  Args:
    candidate: Scores, one per (caption, seed), `[N]`.
    baseline: Scores of the same captions and seeds in the same order, `[N]`.
    **settings: `groups`, `level`, `resamples` and `seed` of `bootstrap`, which resamples the units.

  Returns:
    `Interval` in [0, 1]; 1/2 means no difference.

  Raises:
    InputError: See `wins` and `bootstrap`.
  """
  return bootstrap(wins(candidate, baseline), **settings)


def paired_difference(candidate: np.ndarray, baseline: np.ndarray, **settings) -> Interval:
  """Mean of candidate - baseline, unit by unit.

  Effects of caption and seed cancel, so the interval is narrower than that of two means.

  Args:
    candidate: Scores, one per (caption, seed), `[N]`.
    baseline: Scores of the same captions and seeds in the same order, `[N]`.
    **settings: `groups`, `level`, `resamples` and `seed` of `bootstrap`, which resamples the units.

  Returns:
    `Interval`; 0 means no difference.

  Raises:
    InputError: Lengths differ; see also `bootstrap`.
  """
  a, b = _paired(candidate, baseline)
  return bootstrap(a - b, **settings)


def pairwise_distance(
  images: np.ndarray,
  groups: np.ndarray,
  *,
  level: float = 0.95,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """Mean distance of two images of one caption, averaged over pairs, then over captions.

      D = mean over groups of mean over i < j of sqrt(mean over pixels of (x_i - x_j)²)

  with x the pixel in [0, 1]: 0 if all images of a caption are equal. The interval resamples the
  images of each group; in a resample an image is never paired with its own copy, which would lower
  the distance. With fewer than about eight images per group the interval is too narrow.

  Args:
    images: `[N, H, W, C]` in [-1, 1].
    groups: Caption or label of each image, `[N]`.
    level: Coverage, in (0, 1).
    resamples: Number of resamples, at least 2000.
    seed: Seed of the resampling.

  Returns:
    `Interval` in [0, 1].

  Raises:
    InputError: A group of fewer than two images, shapes that do not fit, a pixel that is not
      finite, or a number out of range.
  """
  x, members = _grouped(images, groups)
  _check_bootstrap(level, resamples)
  rng = np.random.default_rng(seed)
  values, resampled = [], np.zeros(resamples)
  for rows in members:
    n = len(rows)
    squared = np.square(x[rows][:, None] - x[rows][None, :]).mean(axis=2)  # [n, n, d] -> [n, n]
    distance = np.sqrt(squared)
    values.append(distance.sum() / (n * (n - 1)))
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    while (single := weights.max(axis=1) == n).any():  # n copies of one image have no distance
      weights[single] = rng.multinomial(n, np.full(n, 1 / n), size=single.sum())
    total = np.einsum("ri,ri->r", weights @ distance, weights)
    resampled += total / (n**2 - np.square(weights).sum(axis=1))
  return _interval(float(np.mean(values)), resampled / len(members), level)


def vendi(images: np.ndarray, groups: np.ndarray) -> float:
  """Vendi score: effective number of different images of a caption, averaged over captions.

      V = exp(-Σ λ log λ),  λ the eigenvalues of K/n,  K_ij = cosine of images i and j

  with the cosine between pixels in [0, 1]. It ranges from 1, where all images are equal up to
  their brightness, to n, where no two share a pixel, and grows with n: compare only equal n. Blank
  images are similar to each other and to nothing else.

  Args:
    images: `[N, H, W, C]` in [-1, 1].
    groups: Caption or label of each image, `[N]`.

  Returns:
    Mean score of the groups.

  Raises:
    InputError: See `pairwise_distance`.

  Source: arXiv 2210.02410, Definition 1, with a pixel kernel.
  """
  x, members = _grouped(images, groups)
  return float(np.mean([diversity.vendi(x[rows]) for rows in members]))


def _grouped(images: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
  """Pixels `[N, H*W*C]` in [0, 1] and the rows of each group."""
  x, groups = np.asarray(images, np.float64), np.asarray(groups)
  if x.ndim != 4 or groups.shape != x.shape[:1] or not len(x):
    raise InputError(f"images {x.shape} and groups {groups.shape} must be [N, H, W, C] and [N]")
  if not np.isfinite(x).all():
    raise InputError(f"{np.count_nonzero(~np.isfinite(x))} of {x.size} pixels are NaN or infinite")
  members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
  for rows in members:
    if len(rows) < 2:
      raise InputError(
        f"group {groups[rows[0]]!r} has one image; diversity needs two or more: sample more seeds"
      )
  return np.clip((x + 1) / 2, 0, 1).reshape(len(x), -1), members


def _vector(name: str, values: np.ndarray) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not len(x):
    raise InputError(f"{name} must be a vector of at least one number, got shape {x.shape}")
  if not np.isfinite(x).all():
    at = np.flatnonzero(~np.isfinite(x))
    raise InputError(f"{len(at)} of {len(x)} {name} are NaN or infinite, the first at {at[0]}")
  return x


def _paired(candidate: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  a, b = _vector("candidate scores", candidate), _vector("baseline scores", baseline)
  if len(a) != len(b):
    raise InputError(
      f"{len(a)} candidate scores and {len(b)} baseline scores: a pair shares caption and seed"
    )
  return a, b


def _check_bootstrap(level: float, resamples: int) -> None:
  if not 0 < level < 1:
    raise InputError(f"level must lie between 0 and 1, got {level!r}")
  if resamples < 2000:
    raise InputError(f"resamples must be at least 2000 for steady 95% ends, got {resamples!r}")


def _chunks(resamples: int, width: int) -> list[int]:
  step = max(1, CHUNK // width)
  return [min(step, resamples - done) for done in range(0, resamples, step)]


def _interval(value: float, resampled: np.ndarray, level: float) -> Interval:
  low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
  return Interval(value, float(low), float(high))
