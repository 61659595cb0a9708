"""InstructPix2Pix's edits, one for each instruction: parquet files, or its original folders.

The folders are NAME/prompt.json (`edit`, the instruction) with NAME/SEED_0.jpg, the source, and
NAME/SEED_1.jpg, the edit, for each seed that seeds.json lists; without that file, for all seeds.
"""

import pathlib

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import edits, layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.convert.tables import edit_folders
from dmpo_jax.errors import InputError

EXAMPLE = "clip-filtered-dataset/ --rejected source --out data/ip2p"
SPLITS = ("train",)
FILES = f"{layouts.PARQUET_TABLES}, nor folders NAME/prompt.json"
COLUMNS = ("edit_prompt", "edited_image")
# input_image: its name in the samples that diffusers' training example reads.
OPTIONAL = ("id", "original_image", "input_image")
OTHER_FORMS = {
  "instruction": "the columns are MagicBrush's: dmpo-jax data convert magicbrush",
  "output_images": "the columns are ImgEdit's: dmpo-jax data convert imgedit",
}
VOTES, ONE_EDIT = False, True
images = layouts.beside_tables


def files(root: pathlib.Path, split: str) -> list[str]:
  """Parquet files as they are published, or the root of the folders."""
  tables = layouts.parquet_tables(root, split)
  return tables or ([edit_folders.TABLE] if edit_folders.is_one(root) else [])


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The edit of a row against its source.

  Args:
    row: Values by column.
    where: "FILE:ROW", the id of rows that have none.
    labels: Not used: rows have no choice.

  Returns:
    One pair.

  Raises:
    InputError: A value is missing or of the wrong type.
  """
  del labels
  source = next((name for name in OPTIONAL[1:] if name in row), None)
  if source is None:
    raise InputError("there is no source image: expected a column original_image or input_image")
  return [
    edits.against_source(
      id=row_values.label(row, "id") or where,
      prompt=row_values.text(row, "edit_prompt"),
      source=row_values.image(row, source),
      edit=row_values.image(row, "edited_image"),
    )
  ]
