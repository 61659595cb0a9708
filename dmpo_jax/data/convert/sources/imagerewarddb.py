"""ImageRewardDB in the form of its repository's data/test.json: rankings of images in a folder."""

import pathlib

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources.raw_pair import Draft
from dmpo_jax.data.pairs import ranking_pairs
from dmpo_jax.errors import InputError

COLUMNS = ("id", "prompt", "generations", "ranking")
OPTIONAL = ()
VOTES = False
PARTS = "train", "validation", "test"


def files(root: pathlib.Path, part: str) -> list[str]:
  """`PART.json`."""
  return [f"{part}.json"] if (root / f"{part}.json").is_file() else []


def drafts(row: row_values.Row, where: str, labels: str) -> list[Draft]:
  """All pairs of a row's ranking; equal ranks are ties, and the weights of a row sum to one.

  Args:
    row: Values by key.
    where: Not used: rows have ids of their own.
    labels: Not used: a row is one ranking.

  Returns:
    n (n - 1)/2 drafts for n images.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  name = row_values.label(row, "id")
  if not name:
    raise InputError("id must not be empty")
  prompt = row_values.text(row, "prompt")
  paths = [
    row_values.text({"image path": p}, "image path")
    for p in row_values.sequence(row, "generations")
  ]
  ranks = row_values.numbers(row, "ranking")
  if len(ranks) != len(paths):
    raise InputError(f"ranking has {len(ranks)} entries for {len(paths)} generations")
  return [
    Draft(f"{name}:{i}-{j}", prompt, paths[i], paths[j], p0, weight)
    for i, j, p0, weight in ranking_pairs(ranks)
  ]
