"""Layouts of published data sets on disk, for the `files` and `images` of a source."""

import pathlib

JSON_TABLE = "table {split}.json"
PARQUET_TABLES = "table {split}-*.parquet, nor has its folder data"


def json_table(root: pathlib.Path, split: str) -> list[str]:
  """`SPLIT.json`; [] where it does not exist."""
  return [f"{split}.json"] if (root / f"{split}.json").is_file() else []


def parquet_tables(root: pathlib.Path, split: str) -> list[str]:
  """`SPLIT-*.parquet`, in the folder `data` where it exists, else in `root`."""
  folder = "data/" if (root / "data").is_dir() else ""
  return sorted(folder + p.name for p in (root / folder).glob(f"{split}-*.parquet"))


def beside_tables(root: pathlib.Path, split: str) -> pathlib.Path:
  """`root`: paths of images are relative to the folder of the tables."""
  del split
  return root
