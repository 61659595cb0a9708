"""Open Image Preferences v1 binarized: parquet files with the chosen and the rejected image."""

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair, swapped
from dmpo_jax.data.pairs import preferred_first

EXAMPLE = "preferences/ --out data/oip"
SPLITS = ("train",)
FILES, files = layouts.PARQUET_TABLES, layouts.parquet_tables
images = layouts.beside_tables
COLUMNS = ("id", "prompt", "chosen", "rejected")
OPTIONAL = ("chosen_model", "rejected_model")
OTHER_FORMS = {}
VOTES, ONE_EDIT = False, False


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The pair of a row, in random order: the data set names the chosen image first.

  Args:
    row: Values by column.
    where: Not used: rows have ids.
    labels: Not used: rows hold the choice alone.

  Returns:
    One pair.

  Raises:
    InputError: A value is missing or of the wrong type.
  """
  name = row_values.identifier(row, "id")
  pair = RawPair(
    id=name,
    prompt=row_values.text(row, "prompt"),
    image_0=row_values.image(row, "chosen"),
    image_1=row_values.image(row, "rejected"),
    p0=1.0,
    model_0=row_values.label(row, "chosen_model"),
    model_1=row_values.label(row, "rejected_model"),
  )
  return [pair if preferred_first(name) else swapped(pair)]
