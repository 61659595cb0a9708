"""Evaluation of a run's samples against those of its initial pipeline, on a small fixed set."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import interop
from dmpo_jax.common import paths
from dmpo_jax.common.files import located
from dmpo_jax.data import prompt_sets
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import comparison, score_files, units
from dmpo_jax.evaluation.scorers import parse_scorer
from dmpo_jax.training.monitor.metrics import MetricsWriter
from dmpo_jax.training.monitor.run_sampler import RunSampler
from dmpo_jax.training.objective import Params

REFERENCE, POLICY = "reference", "policy"


class SampleEvaluation:
  """Scores samples of a run and compares them with those of the initial pipeline.

  Prompts, seeds, noise and statistics are those of `evaluation.evaluate`. All processes call the
  methods together; the first one scores.

  Args:
    config: A checked config, for config.evaluation.
    pipeline: See `RunSampler`, as the three below.
    combine: See there.
    mesh: See there.
    unused: See there.
    is_first: True in the process that scores and writes.

  Attributes:
    truncated: Number of images whose prompt is longer than the context.

  Raises:
    InputError: The prompts cannot be read, a scorer cannot be loaded, or images of this kind of
      pipeline cannot be sampled.
  """

  def __init__(
    self,
    config: ConfigDict,
    pipeline: interop.Pipeline,
    combine: Callable[[Params, Params], Params],
    mesh: Mesh,
    unused: Params,
    *,
    is_first: bool,
  ):
    section = config.evaluation
    with located("config.evaluation.prompts"):
      prompts = prompt_sets.read(paths.parse(section.prompts), limit=section.limit)
    self._units = units.of_prompts(prompts, images_per_prompt=section.seeds)
    self._scorers = []
    if is_first:
      with located("config.evaluation.scorers"):
        self._scorers = [parse_scorer(text) for text in section.scorers]
        names = [scorer.name for scorer in self._scorers]
        if len(set(names)) < len(names):
          raise InputError(f"two scorers have one name: {', '.join(names)}")
    featured = [i for i, scorer in enumerate(self._scorers) if scorer.embeddings is not None]
    self._measured_by = featured[0] if featured else 0
    self._space = "features" if featured else score_files.PIXELS
    self._sampler = RunSampler(
      config,
      pipeline,
      combine,
      mesh,
      unused,
      self._units.prompts,
      self._units.seeds,
      steps=section.steps,
      guidance=section.guidance,
    )
    self.truncated = self._sampler.truncated
    self._reference: list[score_files.Scores] = []

  def start(self, initial: Params, frozen: Params) -> list[tuple[str, int]]:
    """Scores the samples of the initial pipeline.

    Args:
      initial: Trained parameters at step 0.
      frozen: Parameters that are not trained.

    Returns:
      Prompt and seed of the samples that are not finite.
    """
    images, bad = self._sampler.sample(initial, frozen)
    self._reference = self._score(images)
    return bad

  def evaluate(
    self, step: int, trained: Params, frozen: Params, writer: MetricsWriter | None
  ) -> list[tuple[str, int]]:
    """Scores samples of the policy and writes the comparison.

    Args:
      step: Steps done.
      trained: Trained parameters.
      frozen: Parameters that are not trained.
      writer: Receives the record; None in processes that write nothing.

    Returns:
      Prompt and seed of the samples that are not finite; they are black.
    """
    images, bad = self._sampler.sample(trained, frozen)
    if writer is not None:
      writer.write_evaluation(step, self._compare(self._score(images)))
    return bad

  def _score(self, images: np.ndarray) -> list[score_files.Scores]:
    """Scores of each scorer; with diversity from the one that measures it."""
    pictures = list(np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images)
    result = []
    for number, scorer in enumerate(self._scorers):
      space = self._space if number == self._measured_by else None
      vendi, distance = score_files.diversity_of(pictures, scorer, self._units.groups, space)
      scores = scorer.score(pictures, self._units.prompts)
      result.append(score_files.Scores(scores, np.array(vendi), np.array(distance)))
    return result

  def _compare(self, policy: list[score_files.Scores]) -> dict[str, float]:
    """Statistics as flat numbers: "SCORER/change", its ends "SCORER/change_low" and "_high"."""
    both = list(zip(self._reference, policy, strict=True))
    names = [scorer.name for scorer in self._scorers]
    reference, moved = both[self._measured_by]
    measured = comparison.Measured(
      models=(REFERENCE, POLICY),
      groups=self._units.groups,
      categories=[""] * len(self._units.prompts),
      scores={
        name: {REFERENCE: a.scores, POLICY: b.scores}
        for name, (a, b) in zip(names, both, strict=True)
      },
      space=self._space,
      vendi={REFERENCE: reference.vendi, POLICY: moved.vendi},
      distance={REFERENCE: reference.distance, POLICY: moved.distance},
    )
    result = comparison.compare(measured)
    entries: dict[str, dict[str, Any]] = {name: result["scores"][name][POLICY] for name in names}
    for entry in entries.values():
      entry["change"] = entry.pop("difference")
    if result["diversity"] is not None:
      entries["diversity"] = result["diversity"]["models"][POLICY]
    record = {}
    for name, entry in entries.items():
      for key, interval in entry.items():
        if interval is not None:
          value, low, high = interval
          record |= {f"{name}/{key}": value, f"{name}/{key}_low": low, f"{name}/{key}_high": high}
    return record
