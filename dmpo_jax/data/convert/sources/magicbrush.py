"""MagicBrush: parquet files of turns of edits, one edit for each instruction.

A later turn's source is the edit of the turn before. The masks are not read.
"""

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import edits, layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair

EXAMPLE = "MagicBrush/ --rejected source --out data/magicbrush"
SPLITS = ("train", "dev")
FILES, files = layouts.PARQUET_TABLES, layouts.parquet_tables
images = layouts.beside_tables
COLUMNS = ("img_id", "turn_index", "source_img", "instruction", "target_img")
OPTIONAL = ()
OTHER_FORMS = {
  "edit_prompt": "the columns are InstructPix2Pix's: dmpo-jax data convert instructpix2pix",
}
VOTES, ONE_EDIT = False, True


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The edit of a turn against its source.

  Args:
    row: Values by column.
    where: Not used: image and turn are the id.
    labels: Not used: rows have no choice.

  Returns:
    One pair.

  Raises:
    InputError: A value is missing or of the wrong type.
  """
  del where, labels
  names = (row_values.identifier(row, name) for name in ("img_id", "turn_index"))
  return [
    edits.against_source(
      id="-".join(names),
      prompt=row_values.text(row, "instruction"),
      source=row_values.image(row, "source_img"),
      edit=row_values.image(row, "target_img"),
    )
  ]
