"""HPDv2: train.json of pairs, test.json of rankings by several people, images in folders."""

import pathlib

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.pairs import ranking_pairs, votes_pairs
from dmpo_jax.errors import InputError

EXAMPLE = "HPDv2/ --out data/hpdv2"
SPLITS = ("train", "test")
FILES, files = layouts.JSON_TABLE, layouts.json_table
COLUMNS = ("prompt",)
OPTIONAL = ("file_path", "human_preference", "image_path", "rank", "raw_annotations")
OTHER_FORMS = {}
VOTES, ONE_EDIT = True, False


def images(root: pathlib.Path, split: str) -> pathlib.Path:
  """`SPLIT/` where it exists, or `root`."""
  return root / split if (root / split).is_dir() else root


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """The pairs of a row: one of a training row, all pairs of a test row's ranking.

  Test rows were ranked by several people: p0 is the fraction of them who prefer the first image
  (labels "soft" and "votes"), or follows their joint `rank` ("hard").

  Args:
    row: Values by key.
    where: "FILE:ROW", the id of the row.
    labels: "soft", "votes" or "hard".

  Returns:
    One pair or more.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  prompt = row_values.text(row, "prompt")
  if "file_path" in row:
    paths, chosen = (
      row_values.sequence(row, "file_path"),
      row_values.numbers(row, "human_preference"),
    )
    if len(paths) != 2 or len(chosen) != 2:
      raise InputError("file_path and human_preference must have two entries each")
    if sorted(chosen) not in ([0, 1], [0, 0], [1, 1]):
      raise InputError(f"human_preference must be 0 and 1, got {chosen}")
    p0 = 0.5 if chosen[0] == chosen[1] else chosen[0]
    if labels == "votes":
      raise InputError("training rows of HPDv2 have no votes; use --labels=soft or --labels=hard")
    return [RawPair(where, prompt, _path(paths[0]), _path(paths[1]), p0)]
  paths = [_path(p) for p in row_values.sequence(row, "image_path")]
  joint = row_values.numbers(row, "rank")
  if labels == "hard":
    if len(joint) != len(paths):
      raise InputError(f"rank has {len(joint)} entries for {len(paths)} images")
    ranked = ranking_pairs(joint)
  else:
    rankings = []
    for annotation in row_values.sequence(row, "raw_annotations"):
      if not isinstance(annotation, dict):
        raise InputError("raw_annotations must be a list of {rank, user_hash}")
      rankings.append(row_values.numbers(annotation, "rank"))
    if any(len(r) != len(paths) for r in rankings):
      raise InputError(f"a ranking in raw_annotations does not fit {len(paths)} images")
    ranked = votes_pairs(rankings)
  return [
    RawPair(f"{where}:{i}-{j}", prompt, paths[i], paths[j], p0, weight)
    for i, j, p0, weight in ranked
  ]


def _path(value: object) -> str:
  return row_values.text({"image path": value}, "image path")
