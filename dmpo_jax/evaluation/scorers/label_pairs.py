"""A table of all pairs among a folder of samples, labelled with noise of a known size."""

import csv
import io
from typing import NamedTuple

from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.evaluation.scored_pairs import choose, samples
from dmpo_jax.evaluation.scorers.base import Scorer

COLUMNS = (
  *("id", "prompt", "image_0", "image_1", "label_0", "score_0", "score_1", "seed_0", "seed_1"),
  *("model_0", "model_1"),
)


class LabelledPairs(NamedTuple):
  """Pairs as rows of a table, with statistics of their labels.

  Attributes:
    rows: Values by `COLUMNS`, as `dmpo-jax data convert custom` reads them.
    statistics: See `scored_pairs.choose.summary`.
  """

  rows: list[dict]
  statistics: dict


def label_pairs(
  folder: paths.Path, *, scorer: Scorer, temperature: float, seed: int
) -> LabelledPairs:
  """All pairs of images of one prompt in a folder of samples, with sampled labels.

      P(a preferred over b) = σ((score(a) - score(b)) / temperature)

  A label is one sample of the probability above (Bradley-Terry) from (seed, prompt, seeds of both
  images), so images of nearly equal score are labelled nearly at random.

  Args:
    folder: Finished output of `dmpo-jax sample` with at least two images per prompt.
    scorer: A scorer, see `scorers.load_scorer`.
    temperature: Difference of scores at which the odds are e : 1; > 0.
    seed: Seed of the labels.

  Returns:
    `LabelledPairs`. Pairs of identical images are left out and counted.

  Raises:
    InputError: The folder has no samples or one per prompt, an image cannot be read, or the
      temperature is out of range; or `Scorer.score` refuses an image.
  """
  rule = choose.check(choose.Rule("all", labels="sampled", temperature=temperature, seed=seed))
  source, files = samples.of_folder(folder), samples.file_names(folder)
  rows, counts = [], []
  for shots in source.read(0, len(source.prompts)):
    prompt, seeds = shots.prompt, shots.seeds
    scores = scorer.score(shots.pixels, [prompt] * len(seeds), names=shots.names).tolist()
    chosen, count = choose.choose(prompt, seeds, scores, shots.encoded, rule)
    counts.append(count)
    for pair in chosen:
      two = (pair.first, pair.second)
      values = (
        *(pair.id, prompt, *(files[prompt][seeds[i]] for i in two), int(pair.p0)),
        *(*(scores[i] for i in two), *(seeds[i] for i in two), source.model, source.model),
      )
      rows.append(dict(zip(COLUMNS, values, strict=True)))
  return LabelledPairs(rows, choose.summary(choose.merge(counts)))


def write_table(path: paths.Path, rows: list[dict]) -> None:
  """Writes the rows of `LabelledPairs` as CSV, whole or not at all."""
  stream = io.StringIO(newline="")
  writer = csv.DictWriter(stream, COLUMNS)
  writer.writeheader()
  writer.writerows(rows)
  write_atomically(path, stream.getvalue())
