"""ImgEdit: parquet files of instructions and paths, its unpacked images beside them.

A row is one edit, or the turns of a conversation (`data`), each of them an edit of its own.
"""

import pathlib
from collections.abc import Mapping

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import edits
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.errors import InputError, short

EXAMPLE = "ImgEdit/ --images ImgEdit/Singleturn --rejected source --out data/imgedit"
SPLITS = ("train",)
FILES = "table *.parquet, nor has its folder Parquet"
COLUMNS = ()
OPTIONAL = ("input_images", "output_images", "prompt", "data")
OTHER_FORMS = {}
VOTES, ONE_EDIT = False, True


def files(root: pathlib.Path, split: str) -> list[str]:
  """`*.parquet` in the folder `Parquet` or in `root`."""
  del split
  inner = sorted(f"Parquet/{path.name}" for path in (root / "Parquet").glob("*.parquet"))
  return inner or sorted(path.name for path in root.glob("*.parquet"))


def images(root: pathlib.Path, split: str) -> pathlib.Path:
  """`Singleturn/` where it exists, or `root`."""
  del split
  return root / "Singleturn" if (root / "Singleturn").is_dir() else root


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The edits of a row against their sources.

  Args:
    row: Values by column.
    where: "FILE:ROW", the id; of turns with their number from 1.
    labels: Not used: rows have no choice.

  Returns:
    One pair for each edit.

  Raises:
    InputError: A value is missing or of the wrong type, or an edit has several sources or results.
  """
  del labels
  if row_values.is_missing(row, "data"):
    return [_edit(row, where)]
  turns = row_values.sequence(row, "data")
  for turn in turns:
    if not isinstance(turn, Mapping):
      raise InputError(f"data must be a list of turns, got {short(turn)}")
  return [_edit(turn, f"{where}:{i}") for i, turn in enumerate(turns, 1)]


def _edit(row: row_values.Row, name: str) -> RawPair:
  return edits.against_source(
    id=name,
    prompt=row_values.text(row, "prompt"),
    source=_only(row, "input_images"),
    edit=_only(row, "output_images"),
  )


def _only(row: row_values.Row, name: str) -> str:
  paths = row_values.sequence(row, name)
  if len(paths) != 1:
    raise InputError(f"{name} must hold one image, got {len(paths)}; such edits are not supported")
  return row_values.text({name: paths[0]}, name)
