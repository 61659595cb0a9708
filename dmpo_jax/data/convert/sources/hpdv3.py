"""HPDv3: JSON with the preferred image's path first, images in folders beside it."""

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair, swapped
from dmpo_jax.data.pairs import check_probability, preferred_first
from dmpo_jax.errors import InputError

EXAMPLE = "HPDv3/ --out data/hpdv3"
SPLITS = ("train", "test")
FILES, files = layouts.JSON_TABLE, layouts.json_table
images = layouts.beside_tables
COLUMNS = ("prompt", "path1", "path2")
OPTIONAL = ("model1", "model2", "confidence", "choice_dist")
OTHER_FORMS = {}
VOTES, ONE_EDIT = True, False


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The pair of a row, in random order: the data set always puts the preferred image first.

  Args:
    row: Values by key.
    where: "FILE:ROW", the id.
    labels: "soft" takes `confidence` as P(path1 is preferred), 1 where it is missing; "votes"
      takes the fraction of votes in `choice_dist`; "hard" takes 1.

  Returns:
    One pair.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  p0 = 1.0
  if labels == "votes":
    votes = row_values.numbers(row, "choice_dist")
    if len(votes) != 2 or min(votes) < 0 or not sum(votes) > 0:
      raise InputError(f"choice_dist must be the votes for path1 and path2, got {votes}")
    p0 = check_probability("fraction of votes", votes[0] / sum(votes))
  elif labels == "soft" and not row_values.is_missing(row, "confidence"):
    p0 = row_values.probability(row, "confidence")
  pair = RawPair(
    id=where,
    prompt=row_values.text(row, "prompt"),
    image_0=row_values.text(row, "path1"),
    image_1=row_values.text(row, "path2"),
    p0=p0,
    model_0=row_values.label(row, "model1"),
    model_1=row_values.label(row, "model2"),
  )
  return [pair if preferred_first(where) else swapped(pair)]
