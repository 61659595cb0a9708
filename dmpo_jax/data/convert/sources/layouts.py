"""Layouts of published data sets on disk, for the `files` and `images` of a source."""

import pathlib
import re
from collections.abc import Sequence

from dmpo_jax.errors import InputError

PART = re.compile(r"(.*)-[0-9]{5}-of-([0-9]{5})(?:-[0-9a-f]+)?\.parquet")
JSON_TABLE = "table {split}.json"
PARQUET_TABLES = "table {split}-*.parquet, nor has its folder data"


def json_table(root: pathlib.Path, split: str) -> list[str]:
  """`SPLIT.json`; [] where it does not exist."""
  return [f"{split}.json"] if (root / f"{split}.json").is_file() else []


def parquet_tables(root: pathlib.Path, split: str) -> list[str]:
  """`SPLIT-*.parquet` in the folder `data` or in `root`.

  Raises:
    InputError: Both hold such files.
  """
  inner = sorted(f"data/{p.name}" for p in (root / "data").glob(f"{split}-*.parquet"))
  outer = sorted(p.name for p in root.glob(f"{split}-*.parquet"))
  if inner and outer:
    raise InputError(f"{root} holds {outer[0]} and {inner[0]}; name one of the folders, or a table")
  return inner or outer


def announced(names: Sequence[str]) -> int:
  """Number of tables of a published set by their names, "train-00000-of-00646.parquet"."""
  totals = {match[1]: int(match[2]) for name in names if (match := PART.fullmatch(name))}
  return max(len(names), sum(totals.values()))


def beside_tables(root: pathlib.Path, split: str) -> pathlib.Path:
  """`root`: paths of images are relative to the folder of the tables."""
  del split
  return root
