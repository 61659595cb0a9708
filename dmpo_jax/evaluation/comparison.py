"""Comparison of models with a reference under several scorers, with intervals over prompts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.evaluation import statistics
from dmpo_jax.evaluation.statistics import Interval

SETTINGS = {"resamples": statistics.RESAMPLES, "seed": 0}


class Measured(NamedTuple):
  """Measurements on the images of all models, which share prompts and seeds.

  Attributes:
    models: Names, the reference first.
    groups: Number of the prompt of each image, `[N]`.
    categories: Category of each image, N; "" without one.
    scores: Scorer -> model -> float32 `[N]`.
    space: Where diversity was measured: a scorer's name, or "pixels".
    vendi: Model -> Vendi score of each prompt `[G]`; empty where a prompt has one image.
    distance: Model -> mean pairwise distance of each prompt `[G]`.
  """

  models: Sequence[str]
  groups: np.ndarray
  categories: Sequence[str]
  scores: Mapping[str, Mapping[str, np.ndarray]]
  space: str
  vendi: Mapping[str, np.ndarray]
  distance: Mapping[str, np.ndarray]


def compare(measured: Measured) -> dict[str, Any]:
  """All statistics of an evaluation.

  The unit of every interval is the prompt: the images of a prompt count with their mean, and the
  bootstrap resamples prompts.

  Args:
    measured: See `Measured`.

  Returns:
    A dict of `Interval`s and numbers:

    scores: scorer -> model -> {mean, difference, win_rate}; difference (candidate - reference,
      image by image) and win_rate (ties count one half) are None for the reference.
    categories: category -> {prompts, scores, diversity}; empty without categories.
    diversity: {space, models: model -> {vendi, distance, vendi_ratio, distance_ratio}}; the ratios
      are to the reference; None where a prompt has one image.
    agreement: one dict for each two scorers: {scorers, rank_correlation of the scores of all
      images, difference_rank_correlation of candidate - reference, sign_agreement}. A sign agrees
      where both scorers prefer the same image; a tie counts one half, so that unrelated scorers
      agree in 1/2.
  """
  names = [c for c in dict.fromkeys(measured.categories) if c]
  categories = {}
  for name in names if len(names) > 1 else ():
    rows = np.flatnonzero(np.array(measured.categories) == name)
    categories[name] = {
      "prompts": len(np.unique(measured.groups[rows])),
      "scores": _scores(measured, rows),
      "diversity": _diversity(measured, np.unique(measured.groups[rows])),
    }
  pairs = itertools.combinations(measured.scores, 2)
  return {
    "scores": _scores(measured, np.arange(len(measured.groups))),
    "categories": categories,
    "diversity": _diversity(measured, np.arange(measured.groups[-1] + 1)),
    "agreement": [_agreement(measured, a, b) for a, b in pairs],
  }


def _scores(measured: Measured, rows: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
  reference, settings = measured.models[0], {**SETTINGS, "groups": measured.groups[rows]}
  result: dict[str, dict[str, dict[str, Any]]] = {}
  for scorer, scores in measured.scores.items():
    baseline = scores[reference][rows]
    result[scorer] = {}
    for model in measured.models:
      values, compared = scores[model][rows], model != reference
      result[scorer][model] = {
        "mean": statistics.bootstrap(values, **settings),
        "difference": statistics.paired_difference(values, baseline, **settings)
        if compared
        else None,
        "win_rate": statistics.win_rate(values, baseline, **settings) if compared else None,
      }
  return result


def _diversity(measured: Measured, prompts: np.ndarray) -> dict[str, Any] | None:
  """Diversity of some of the prompts."""
  reference = measured.models[0]
  if not len(measured.vendi[reference]):
    return None
  models = {}
  for model in measured.models:
    entry: dict[str, Interval | None] = {}
    for name, measure in (("vendi", measured.vendi), ("distance", measured.distance)):
      values = {m: measure[m][prompts] for m in (reference, model)}
      entry[name] = statistics.bootstrap(values[model], **SETTINGS)
      compared = model != reference
      comparable = compared and values[reference].any()  # all images of all prompts may be equal
      entry[f"{name}_ratio"] = (
        statistics.ratio(values[model], values[reference], **SETTINGS) if comparable else None
      )
    models[model] = entry
  return {"space": measured.space, "models": models}


def _agreement(measured: Measured, a: str, b: str) -> dict[str, Any]:
  reference, *candidates = measured.models
  x, y = (
    np.concatenate([measured.scores[scorer][model] for model in measured.models])
    for scorer in (a, b)
  )
  result = {"scorers": [a, b], "rank_correlation": rank_correlation(x, y)}
  if not candidates:
    return {**result, "difference_rank_correlation": None, "sign_agreement": None}
  dx, dy = (
    np.concatenate(
      [measured.scores[s][m].astype(float) - measured.scores[s][reference] for m in candidates]
    )
    for s in (a, b)
  )
  agree = (1 + np.sign(dx) * np.sign(dy)) / 2
  groups = np.tile(measured.groups, len(candidates))
  return {
    **result,
    "difference_rank_correlation": rank_correlation(dx, dy),
    "sign_agreement": statistics.bootstrap(agree, groups=groups, **SETTINGS),
  }


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
  """Spearman's rank correlation; ties have their mean rank; None where all values are equal.

  Args:
    x: `[N]`.
    y: `[N]`.

  Returns:
    The correlation, in [-1, 1].
  """
  ranks = []
  for values in (x, y):
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    rank = (ends - (counts - 1) / 2)[places]
    ranks.append(rank - rank.mean())
  a, b = ranks
  size = np.sqrt((a**2).sum() * (b**2).sum())
  return float((a * b).sum() / size) if size > 0 else None


def examples(
  candidate: np.ndarray, reference: np.ndarray, groups: np.ndarray, *, count: int
) -> dict[str, list[int]]:
  """Images to show beside the reference's: best, worst and random ones, chosen by rule.

  Best are the images with the largest candidate - reference, the largest of each prompt alone, and
  worst those with the smallest. Random ones are the first image of prompts in the order of
  `np.random.default_rng(0).permutation`, the same for all candidates and scorers.

  Args:
    candidate: Scores `[N]`.
    reference: Scores of the same prompts and seeds, `[N]`.
    groups: Prompt of each image, `[N]`.
    count: Largest number of images of each kind.

  Returns:
    "best", "worst" and "random" -> numbers of images, in order.
  """
  difference = np.asarray(candidate, np.float64) - reference
  chosen = {}
  for name, order in (
    ("best", np.argsort(-difference, kind="stable")),
    ("worst", np.argsort(difference, kind="stable")),
  ):
    _, first = np.unique(groups[order], return_index=True)
    chosen[name] = order[np.sort(first)][:count].tolist()
  _, first = np.unique(groups, return_index=True)
  shuffled = np.random.default_rng(0).permutation(len(first))
  chosen["random"] = first[shuffled][:count].tolist()
  return chosen
