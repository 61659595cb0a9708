"""Held-out accuracy of a scorer, with intervals that resample captions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dmpo_jax.common import paths
from dmpo_jax.data import crops, tfds_folder
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import statistics
from dmpo_jax.models.clip.build import CLIP
from dmpo_jax.parallel import sharding
from dmpo_jax.reward import objective
from dmpo_jax.reward.objective import SCORER, Normalisation

PAIRS_AT_A_TIME = 64


class HeldOut(NamedTuple):
  """Pairs of captions that a scorer does not train on, in memory.

  Attributes:
    pixels: uint8 `[N, 2, S, S, 3]`.
    ids: Token ids `[N, L]`.
    p0: Probability that image 0 is preferred, float64 `[N]`.
    captions: `prompt_id` of each pair.
  """

  pixels: np.ndarray
  ids: np.ndarray
  p0: np.ndarray
  captions: list[str]


def load(folder: paths.Path, split: str, *, size: int, tokenize: Callable) -> HeldOut:
  """Reads all pairs of a split.

  Args:
    folder: A converted folder.
    split: Name of the split.
    size: Side of the images; squares of their centre.
    tokenize: See `ScorerModel.tokenize`.

  Returns:
    `HeldOut`.

  Raises:
    InputError: The folder or split cannot be read, or all its pairs are ties.
  """
  source = tfds_folder.PairSource(folder, split)
  pairs = [source[i] for i in range(len(source))]
  if all(pair.p0 == 0.5 for pair in pairs):
    raise InputError(f"all {len(pairs)} pairs of split {split!r} of {folder} are ties")
  pixels = [
    [
      crops.load(image, crops.CENTER, size=size, channels=3)[0]
      for image in (pair.image_0, pair.image_1)
    ]
    for pair in pairs
  ]
  return HeldOut(
    np.array(pixels, np.uint8),
    tokenize([pair.prompt for pair in pairs])[0][objective.TOKENS],
    np.array([pair.p0 for pair in pairs]),
    [pair.prompt_id for pair in pairs],
  )


def make_scores(
  clip: CLIP, normalise: Normalisation, mesh: Mesh, dtype: Any
) -> Callable[[Any, HeldOut], np.ndarray]:
  """A function of (parameters on the mesh, pairs) that returns scores, float32 `[N, 2]`.

  All processes of the mesh call it together.
  """
  batch = -(-PAIRS_AT_A_TIME // mesh.size) * mesh.size
  rows, everywhere = sharding.batch(mesh), sharding.replicated(mesh)

  @jax.jit
  def run(params, pixels, ids):
    each = objective.scores(clip, params, normalise(pixels), ids, dtype=dtype)
    return jax.lax.with_sharding_constraint(each, everywhere)

  def scores(params: Any, pairs: HeldOut) -> np.ndarray:
    out = []
    for start in range(0, len(pairs.p0), batch):
      # One batch size, so that one program computes each pair in the same way.
      taken = np.minimum(np.arange(start, start + batch), len(pairs.p0) - 1)
      arrays = sharding.put([pairs.pixels[taken], pairs.ids[taken]], [rows, rows])
      out.append(np.asarray(run(params, *arrays).addressable_data(0)))
    return np.concatenate(out)[: len(pairs.p0)]

  return scores


def summarise(scores: np.ndarray, p0: np.ndarray, captions: Sequence[str]) -> dict[str, Any]:
  """Accuracy and loss of scores on labelled pairs.

      accuracy = mean over pairs without ties of [score_0 > score_1] == [p0 > 1/2]

  Equal scores count 1/2. The 95% interval resamples captions: pairs of one caption are not
  independent.

  Args:
    scores: `[N, 2]`.
    p0: `[N]`.
    captions: Caption of each pair.

  Returns:
    accuracy, accuracy_low, accuracy_high, loss (of all pairs, see `preference_loss`), pairs, ties,
    captions.
  """
  gap = np.asarray(scores[:, 0], np.float64) - scores[:, 1]
  decided = p0 != 0.5
  right = np.where(gap == 0, 0.5, (gap > 0) == (p0 > 0.5))[decided]
  _, groups = np.unique(np.asarray(captions)[decided], return_inverse=True)
  # The ratio of sums over captions is the accuracy over pairs.
  accuracy = statistics.ratio(np.bincount(groups, right), np.bincount(groups))
  loss = p0 * np.logaddexp(0, -gap) + (1 - p0) * np.logaddexp(0, gap)
  return {
    "accuracy": float(accuracy.value),
    "accuracy_low": float(accuracy.low),
    "accuracy_high": float(accuracy.high),
    "loss": float(loss.mean()),
    "pairs": int(decided.sum()),
    "ties": int((~decided).sum()),
    "captions": int(groups.max()) + 1,
  }


def evaluate(scores: Callable, params: Any, pairs: HeldOut) -> dict[str, Any]:
  """`summarise` of a state's parameters {"scorer": tree}."""
  return summarise(scores(params[SCORER], pairs), pairs.p0, pairs.captions)
