"""Open Image Preferences v1 binarized: parquet files with the chosen and the rejected image."""

import pathlib

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources.raw_pair import Draft, swapped
from dmpo_jax.data.pairs import randomly_ordered
from dmpo_jax.errors import InputError

COLUMNS = ("id", "prompt", "chosen", "rejected")
OPTIONAL = ("chosen_model", "rejected_model")
VOTES = False
PARTS = ("train",)


def files(root: pathlib.Path, part: str) -> list[str]:
  """Names of the part's tables: `PART-*.parquet`, in `root` or in its folder `data`."""
  folder = "data/" if (root / "data").is_dir() else ""
  return sorted(folder + p.name for p in (root / folder).glob(f"{part}-*.parquet"))


def drafts(row: row_values.Row, where: str, labels: str) -> list[Draft]:
  """The pair of a row, in random order: the set itself names the chosen image first.

  Args:
    row: Values by column.
    where: Not used: rows have ids of their own.
    labels: Not used: the set tells the choice alone.

  Returns:
    One draft.

  Raises:
    InputError: A value is missing or of the wrong type.
  """
  name = row_values.label(row, "id")
  if not name:
    raise InputError("id must not be empty")
  draft = Draft(
    id=name,
    prompt=row_values.text(row, "prompt"),
    image_0=row_values.image(row, "chosen"),
    image_1=row_values.image(row, "rejected"),
    p0=1.0,
    model_0=row_values.label(row, "chosen_model"),
    model_1=row_values.label(row, "rejected_model"),
  )
  return [draft if randomly_ordered(name) else swapped(draft)]
