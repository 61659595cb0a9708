"""Pick-a-Pic v1 and v2: parquet files with both images of a row inside."""

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.errors import InputError

EXAMPLE = "pickapic_v2/ --out data/pickapic --unlabelled=drop"
SPLITS = ("train", "validation", "validation_unique", "test", "test_unique")
FILES, files = layouts.PARQUET_TABLES, layouts.parquet_tables
images = layouts.beside_tables
COLUMNS = (
  *("caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "ranking_id"),
  *("image_0_uid", "image_1_uid", "num_example_per_prompt"),
)
OPTIONAL = ("model_0", "model_1", "user_id")
OTHER_FORMS = {
  "image_0_url": "a table of urls alone has no images; take the set that holds them (jpg_0, jpg_1)"
}
VOTES, ONE_EDIT = False, False


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The pair of a row.

  The weight is 1/num_example_per_prompt, so that each prompt counts the same, however many pairs it
  has; the id joins `ranking_id` and both images' uids.

  Args:
    row: Values by column.
    where: Not used: rows have ids.
    labels: Not used: a row is one person's choice.

  Returns:
    One pair; its p0 is None where `has_label` is false.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  # These three make the id.
  first, second = (row_values.identifier(row, f"image_{i}_uid") for i in (0, 1))
  ranking = row_values.identifier(row, "ranking_id")
  has_label = row_values.get(row, "has_label")
  if not isinstance(has_label, bool):
    raise InputError(f"has_label must be true or false, got {str(has_label)[:60]!r}")
  p0 = None
  if has_label:
    p0, p1 = (row_values.probability(row, f"label_{i}") for i in (0, 1))
    if abs(p0 + p1 - 1) > 1e-6:
      raise InputError(f"label_0 + label_1 must be 1, got {p0} and {p1}")
  count = row_values.number(row, "num_example_per_prompt")
  if count < 1:
    raise InputError(f"num_example_per_prompt must be at least 1, got {count}")
  return [
    RawPair(
      id=f"{ranking}:{first}:{second}",
      prompt=row_values.text(row, "caption"),
      image_0=_encoded(row, "jpg_0"),
      image_1=_encoded(row, "jpg_1"),
      p0=p0,
      weight=1 / count,
      model_0=row_values.label(row, "model_0"),
      model_1=row_values.label(row, "model_1"),
      user_id=row_values.label(row, "user_id"),
    )
  ]


def _encoded(row: row_values.Row, name: str) -> bytes:
  """The image in a column, which must be encoded bytes."""
  value = row_values.get(row, name)
  if not isinstance(value, bytes):
    raise InputError(f"{name} must hold an image's bytes, got {type(value).__name__}")
  return value
