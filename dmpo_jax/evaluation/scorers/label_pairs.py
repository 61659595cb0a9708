"""Preference pairs among a model's own samples, labelled by a scorer with noise of a known size."""

import csv
import io
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import images, pairs
from dmpo_jax.errors import InputError, short
from dmpo_jax.evaluation.scorers.base import Scorer
from dmpo_jax.sampling.image_folder import MANIFEST

COLUMNS = (
  *("id", "prompt", "image_0", "image_1", "label_0", "score_0", "score_1", "model_0", "model_1"),
)


ADVICE = "sample into a new folder"


class LabelledPairs(NamedTuple):
  """Pairs as rows of a table, with statistics of their labels.

  Attributes:
    rows: Values by `COLUMNS`, as `dmpo-jax data convert custom` reads them.
    images: Number of images that were scored.
    score_spread: Standard deviation of the score among the images of a prompt (root of the mean
      variance over prompts, n - 1 in the denominator).
    flip_rate: Fraction of the pairs in which the image with the lower score is preferred.
  """

  rows: list[dict]
  images: int
  score_spread: float
  flip_rate: float


def label_pairs(
  folder: pathlib.Path, *, scorer: Scorer, temperature: float, seed: int
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
    `LabelledPairs`.

  Raises:
    InputError: The folder has no samples or one per prompt, an image cannot be read, or the
      temperature is out of range; or `Scorer.score` refuses an image.
  """
  folder = pathlib.Path(folder)
  model, by_prompt = _read_manifest(folder)
  rows, variances, flips = [], [], 0
  for prompt, samples in by_prompt.items():
    scores = _scores(folder, [sample["file"] for sample in samples], prompt, scorer)
    variances.append(np.var(scores, ddof=1))
    for (a, score_0), (b, score_1) in itertools.combinations(zip(samples, scores, strict=True), 2):
      name = f"{pairs.prompt_key(prompt)}:{a['seed']}:{b['seed']}"
      p0 = pairs.p0_of_scores(score_0, score_1, temperature=temperature)
      # The salt is part of the labels' definition: another one gives other labels.
      label = int(pairs.fraction_of(name, salt=f"judge {seed}") < p0)
      flips += label != (score_0 > score_1) and score_0 != score_1
      values = (name, prompt, a["file"], b["file"], label, score_0, score_1)
      rows.append(dict(zip(COLUMNS, (*values, model, model), strict=True)))
  return LabelledPairs(
    rows=rows,
    images=sum(map(len, by_prompt.values())),
    score_spread=float(np.sqrt(np.mean(variances))),
    flip_rate=flips / len(rows),
  )


def write_table(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes the rows of `LabelledPairs` as CSV, whole or not at all."""
  stream = io.StringIO(newline="")
  writer = csv.DictWriter(stream, COLUMNS)
  writer.writeheader()
  writer.writerows(rows)
  write_atomically(path, stream.getvalue())


def _read_manifest(folder: pathlib.Path) -> tuple[str, dict[str, list[dict]]]:
  """Model that made a folder of samples, and its images by prompt."""
  path = folder / MANIFEST
  if not path.is_file():
    raise InputError(
      f"{folder} has no finished samples (no {MANIFEST}); generate them with dmpo-jax sample"
    )
  manifest = files.read_json(path, advice=ADVICE)
  model = _value(manifest, "pipeline", str, path)
  by_prompt: dict[str, list[dict]] = {}
  for position, image in enumerate(_value(manifest, "images", list, path)):
    where = f"{path}, image {position}"
    if not isinstance(image, dict):
      raise InputError(f"{where} is {short(image)}, expected an object; {ADVICE}")
    for key, kind in (("file", str), ("prompt", str), ("seed", int)):
      _value(image, key, kind, where)
    by_prompt.setdefault(image["prompt"], []).append(image)
  single = [prompt for prompt, samples in by_prompt.items() if len(samples) < 2]
  if single or not by_prompt:
    raise InputError(
      f"{len(single)} of {len(by_prompt)} prompts in {folder} have one image; a pair needs two: "
      "sample with --seeds 2 or more"
    )
  return model, by_prompt


def _value(values: dict, key: str, kind: type, where: object) -> Any:
  value = values.get(key)
  if not isinstance(value, kind) or isinstance(value, bool):
    what = f"{key} is {short(value)}" if key in values else f"there is no {key}"
    raise InputError(f"{where}: {what}, expected a {kind.__name__}; {ADVICE}")
  return value


def _scores(folder: pathlib.Path, names: list[str], prompt: str, scorer: Scorer) -> list[float]:
  """Scores of the images of one prompt."""
  pixels = [np.asarray(images.decode(images.load(name, folder).encoded)) for name in names]
  paths = [str(folder / name) for name in names]
  return scorer.score(pixels, [prompt] * len(pixels), names=paths).tolist()
