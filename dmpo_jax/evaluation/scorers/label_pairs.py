"""Preference pairs among a model's own samples, labelled by a declared score with known noise."""

import csv
import io
import itertools
import json
import pathlib
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import images, pairs
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.evaluation.scorers.pixels import SCORES

MANIFEST = "manifest.json"  # of `dmpo-jax sample`
COLUMNS = (
  *("id", "prompt", "image_0", "image_1", "label_0", "score_0", "score_1", "model_0", "model_1"),
)


class Judgement(NamedTuple):
  """Pairs as rows of a table, and what is known of their labels.

  Attributes:
    rows: Values by `COLUMNS`, as `dmpo-jax data convert pairs` reads them.
    images: How many images were scored.
    within: Standard deviation of the score among the images of a prompt (root of the mean variance
      over prompts, n - 1 in the denominator).
    noise: Share of the pairs in which the image with the lower score was preferred.
  """

  rows: list[dict]
  images: int
  within: float
  noise: float


def judge(folder: pathlib.Path, *, score: str, temperature: float, seed: int) -> Judgement:
  """All pairs of images of one prompt in a folder of samples, with labels drawn by a rule.

      P(a preferred over b) = σ((score(a) - score(b)) / temperature)

  A label is one draw from the probability above (Bradley-Terry) from (seed, prompt, seeds of both
  images), so images of nearly equal score are labelled nearly at random.

  Args:
    folder: What `dmpo-jax sample` wrote, complete, with at least two images a prompt.
    score: A key of `picture_scores.SCORES`.
    temperature: Difference of scores at which the odds are e : 1; > 0.
    seed: Decides the labels.

  Returns:
    `Judgement`.

  Raises:
    InputError: The folder is another one, an image cannot be used, or an option does not exist.
  """
  if score not in SCORES:
    raise unknown("score", score, SCORES)
  model, by_prompt = _read(pathlib.Path(folder))
  rows, variances, wrong = [], [], 0
  for prompt, samples in by_prompt.items():
    found = [_score(pathlib.Path(folder), sample["file"], score) for sample in samples]
    variances.append(np.var(found, ddof=1))
    for (a, score_0), (b, score_1) in itertools.combinations(zip(samples, found, strict=True), 2):
      name = f"{pairs.prompt_key(prompt)}:{a['seed']}:{b['seed']}"
      p0 = pairs.p0_of_scores(score_0, score_1, temperature=temperature)
      label = int(pairs.fraction_of(name, salt=f"judge {seed}") < p0)
      wrong += label != (score_0 > score_1) and score_0 != score_1
      values = (name, prompt, a["file"], b["file"], label, score_0, score_1)
      rows.append(dict(zip(COLUMNS, (*values, model, model), strict=True)))
  return Judgement(
    rows=rows,
    images=sum(map(len, by_prompt.values())),
    within=float(np.sqrt(np.mean(variances))),
    noise=wrong / len(rows),
  )


def write_table(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes the rows of a judgement as CSV, whole or not at all."""
  stream = io.StringIO(newline="")
  writer = csv.DictWriter(stream, COLUMNS)
  writer.writeheader()
  writer.writerows(rows)
  write_atomically(path, stream.getvalue())


def _read(folder: pathlib.Path) -> tuple[str, dict[str, list[dict]]]:
  """The model that made a folder of samples, and its images by prompt."""
  path = folder / MANIFEST
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    model, by_prompt = manifest["pipeline"], {}
    for image in manifest["images"]:
      by_prompt.setdefault(image["prompt"], []).append(image)
  except OSError as error:
    raise InputError(
      f"{folder} holds no finished samples ({MANIFEST}: {error.strerror}); draw them with "
      "dmpo-jax sample"
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path} is no manifest of dmpo-jax sample: {error!r}") from error
  single = [prompt for prompt, found in by_prompt.items() if len(found) < 2]
  if single or not by_prompt:
    raise InputError(
      f"{len(single)} of {len(by_prompt)} prompts in {folder} have one image; a pair needs two: "
      "sample with --seeds 2 or more"
    )
  return model, by_prompt


def _score(folder: pathlib.Path, file: str, score: str) -> float:
  pixels = np.asarray(images.decode(images.load(file, folder).encoded))  # [H, W, 3]
  return float(SCORES[score](pixels / 127.5 - 1))
