"""Your own pairs: a table beside its images, or the folders winner/, loser/ and captions/.

Of edits, the table's column `condition` or the folder source/ holds the images that were edited.
"""

import pathlib
from collections.abc import Callable

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.pairs import check_weight
from dmpo_jax.errors import InputError

EXAMPLE = "my/pairs.csv --out data/mine"
SPLITS = ()
FILES = (
  "folders winner/, loser/ and captions/, and is no table (.csv, .tsv, .json, .jsonl, .parquet)"
)
COLUMNS = ("prompt", "image_0", "image_1")
OPTIONAL = (
  *("label_0", "score_0", "score_1", "id", "weight", "model_0", "model_1", "user_id", "condition"),
  *("seed_0", "seed_1"),
)
OTHER_FORMS = {
  "jpg_0": "the columns are Pick-a-Pic's: dmpo-jax data convert pickapic",
  "file_path": "the columns are HPDv2's: dmpo-jax data convert hpdv2",
  "path1": "the columns are HPDv3's: dmpo-jax data convert hpdv3",
  "generations": "the columns are ImageRewardDB's: dmpo-jax data convert imagerewarddb",
  "chosen": "the columns are Open Image Preferences': dmpo-jax data convert open-image-preferences",
}
VOTES, ONE_EDIT = False, False
images = layouts.beside_tables


def files(root: pathlib.Path, split: str) -> list[str]:
  """The folder of preferred images, which `tables` reads together with the other two."""
  del split
  return ["winner"] if (root / "winner").is_dir() else []


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The pair of a row.

  Args:
    row: `prompt`, `image_0`, `image_1` (paths or bytes) and `label_0` = P(image_0 is preferred), or
      `score_0` and `score_1` in its place or beside it; optionally `id`, `weight`, `model_0`,
      `model_1`, `user_id`, `condition` (the image that was edited), `seed_0` and `seed_1`.
    where: "FILE:ROW", the id where the row has none.
    labels: Not used: a row holds one label.

  Returns:
    One pair. Its p0 is None where `label_0` is empty.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  del labels
  p0 = None
  if not row_values.is_missing(row, "label_0"):
    p0 = row_values.probability(row, "label_0")
  weight = 1.0
  if not row_values.is_missing(row, "weight"):
    weight = check_weight(row_values.number(row, "weight"))
  if "condition" in row and row_values.is_missing(row, "condition"):
    raise InputError(
      "condition is empty: the table has source images, and this pair has none; leave the row out, "
      "or convert pairs without sources from a table of their own"
    )
  return [
    RawPair(
      id=row_values.label(row, "id") or where,
      prompt=row_values.text(row, "prompt"),
      image_0=row_values.image(row, "image_0"),
      image_1=row_values.image(row, "image_1"),
      p0=p0,
      weight=weight,
      model_0=row_values.label(row, "model_0"),
      model_1=row_values.label(row, "model_1"),
      user_id=row_values.label(row, "user_id"),
      condition=row_values.image(row, "condition") if "condition" in row else b"",
      scores=_both(row, "score_0", "score_1", row_values.number),
      seeds=_both(row, "seed_0", "seed_1", row_values.seed),
    )
  ]


def _both(row: row_values.Row, first: str, second: str, read: Callable) -> tuple | None:
  """The values of two columns; None where one is empty."""
  if row_values.is_missing(row, first) or row_values.is_missing(row, second):
    return None
  return read(row, first), read(row, second)
