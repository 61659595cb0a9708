"""Small conversions for tests."""

import json
import pathlib

from dmpo_jax.data import pairs, tfds_folder
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from tests.data import sets


def files(folder: pathlib.Path) -> dict[str, bytes]:
  """Everything in a folder."""
  every = sorted(p for p in folder.rglob("*") if p.is_file())
  return {str(p.relative_to(folder)): p.read_bytes() for p in every}


def pickapic(root: pathlib.Path, rows: list[dict]) -> source_reader.Source:
  sets.pickapic(root / "source/train-0.parquet", rows)
  return source_reader.find("pickapic", root / "source")


def all_pairs(folder: pathlib.Path, split: str = "train") -> list[pairs.Pair]:
  source = tfds_folder.PairSource(folder, split)
  return [source[i] for i in range(len(source))]


def run(root: pathlib.Path, rows: list[dict], name: str = "out", **choices) -> dict:
  options = Options(rows_per_shard=4, **choices)
  return convert.convert(pickapic(root, rows), root / name, options)


def bad_rows(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]


TIE = {"label_0": 0.5, "label_1": 0.5}  # changes of a row of Pick-a-Pic
SPLITS = {"train": 0.6, "test": 0.4}
