"""HIVE's training edits: JSON lines beside the images, one edit for each instruction."""

import pathlib

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import edits, layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair

EXAMPLE = "hive/ --rejected source --out data/hive"
SPLITS = ("train",)
FILES = "table training*.jsonl"
images = layouts.beside_tables
COLUMNS = ("instruction", "source_img", "edited_img")
OPTIONAL = ()
OTHER_FORMS = {
  "target_img": "the columns are MagicBrush's: dmpo-jax data convert magicbrush",
}
VOTES, ONE_EDIT = False, True


def files(root: pathlib.Path, split: str) -> list[str]:
  """`training*.jsonl`, such as the published training_1M.jsonl."""
  del split
  return sorted(path.name for path in root.glob("training*.jsonl"))


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The edit of a row against its source.

  Args:
    row: Values by key.
    where: "FILE:ROW", the id.
    labels: Not used: rows have no choice.

  Returns:
    One pair.

  Raises:
    InputError: A value is missing or of the wrong type.
  """
  del labels
  return [
    edits.against_source(
      id=where,
      prompt=row_values.text(row, "instruction"),
      source=row_values.text(row, "source_img"),
      edit=row_values.text(row, "edited_img"),
    )
  ]
