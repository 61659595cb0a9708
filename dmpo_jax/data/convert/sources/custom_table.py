"""One's own pairs in a table: CSV, TSV, JSON, JSON lines or parquet, images beside it or inside."""

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources.raw_pair import Draft
from dmpo_jax.data.pairs import check_probability, check_weight, p0_of_scores

COLUMNS = ("prompt", "image_0", "image_1")
OPTIONAL = (
  *("label_0", "score_0", "score_1", "id", "weight", "model_0", "model_1", "user_id", "condition"),
)
VOTES = False


def drafts(
  row: row_values.Row, where: str, labels: str, *, temperature: float = 1.0
) -> list[Draft]:
  """The pair of a row.

  Args:
    row: `prompt`, `image_0`, `image_1` (paths or bytes) and `label_0` = P(image_0 is preferred), or
      `score_0` and `score_1` in its place; optionally `id`, `weight`, `model_0`, `model_1`,
      `user_id`, `condition` (an image).
    where: "FILE:ROW", the id where the row has none.
    labels: Not used: the row tells its label.
    temperature: Of the scores, see `p0_of_scores`.

  Returns:
    One draft; its p0 is None where label and scores are empty.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  p0 = None
  if not row_values.is_missing(row, "label_0"):
    p0 = check_probability("label_0", row_values.number(row, "label_0"))
  elif not (row_values.is_missing(row, "score_0") or row_values.is_missing(row, "score_1")):
    scores = row_values.number(row, "score_0"), row_values.number(row, "score_1")
    p0 = p0_of_scores(*scores, temperature=temperature)
  weight = 1.0
  if not row_values.is_missing(row, "weight"):
    weight = check_weight(row_values.number(row, "weight"))
  has_condition = not row_values.is_missing(row, "condition")
  return [
    Draft(
      id=row_values.label(row, "id") or where,
      prompt=row_values.text(row, "prompt"),
      image_0=row_values.image(row, "image_0"),
      image_1=row_values.image(row, "image_1"),
      p0=p0,
      weight=weight,
      model_0=row_values.label(row, "model_0"),
      model_1=row_values.label(row, "model_1"),
      user_id=row_values.label(row, "user_id"),
      condition=row_values.image(row, "condition") if has_condition else b"",
    )
  ]
