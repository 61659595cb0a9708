"""`dmpo-jax evaluate` and `score` on edits of source images."""

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from dmpo_jax.commands.main import main
from tests.interop import tiny

ROWS = ["a.png,seven", "b.png,seven", "b.png,one", "c.png,one"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp("edits")
  tiny.write_tiny_pixel_editing(folder / "pipeline")
  for name in "abc":
    Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{name}.png")
  (folder / "edits.csv").write_text("\n".join(["source,prompt", *ROWS]))
  return folder


def evaluate(root, out, *more, table="edits.csv", reference="pipeline"):
  prompts = ["--prompts", str(root / table)] if table else []
  common = ["--steps", "2", "--seeds", "1", "--batch-size", "4", "--no-progress"]
  scorers = ["--scorer", "source_similarity", "--scorer", "brightness"]
  arguments = ["evaluate", "--reference", str(root / reference), *prompts, "--out", str(out)]
  return main([*arguments, *common, *scorers, *more])


@pytest.fixture(scope="module")
def evaluated(root):
  out = root / "out"
  assert evaluate(root, out, f"same={root / 'pipeline'}") == 0
  return out


def rows(evaluated):
  return pyarrow.parquet.read_table(evaluated / "scores.parquet").to_pylist()


def test_scores_of_edits_are_those_of_the_files_beside_their_sources(evaluated):
  for row in rows(evaluated):
    edit, source = (
      np.asarray(Image.open(path).convert("RGB")) / 255
      for path in (evaluated / row["image"], row["source"])
    )
    np.testing.assert_allclose(
      row["source_similarity"], 1 - np.abs(edit - source).mean(), rtol=1e-5
    )


def test_instructions_are_categories_and_their_sources_are_counted(evaluated):
  result = json.loads((evaluated / "evaluation.json").read_text())
  assert {name: x["prompts"] for name, x in result["categories"].items()} == {"seven": 2, "one": 2}
  assert result["prompts"]["sources"] == 3
  assert "4 edits of 3 source images" in (evaluated / "report.html").read_text()


def test_the_grid_shows_source_reference_and_candidate_of_each_edit(evaluated):
  grid = np.asarray(Image.open(evaluated / "edits.png").convert("L"))
  first = rows(evaluated)[0]
  for path in (first["source"], evaluated / first["image"]):
    picture = np.asarray(Image.open(path).convert("L")).repeat(8, axis=0).repeat(8, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(grid, picture.shape)[:, :, ::16, ::16]
    near = np.abs(windows.astype(int) - picture[::16, ::16]).max(axis=(2, 3)) <= 3
    assert near.any(), path


def test_finished_edits_are_a_reference_of_their_own_and_are_scored_by_score(
  root, evaluated, tmp_path
):
  finished = evaluated / "images" / "same"
  out = tmp_path / "out"
  assert evaluate(root, out, f"x={root / 'pipeline'}", table=None, reference=finished) == 0
  by_model = {name: [r for r in rows(out) if r["model"] == name] for name in ("reference", "x")}
  for a, b in zip(*by_model.values(), strict=True):
    assert a["source_similarity"] == b["source_similarity"]
  table = tmp_path / "scores.csv"
  assert main(["score", str(finished), "--scorer", "source_similarity", "--out", str(table)]) == 0
  scores = [float(row["source_similarity"]) for row in csv.DictReader(table.open())]
  np.testing.assert_allclose(scores, [r["source_similarity"] for r in by_model["x"]], rtol=1e-6)


def test_edits_that_do_not_fit_are_refused(root, evaluated, tmp_path, capsys):
  (root / "plain.csv").write_text("prompt\nseven\n")
  (root / "gone.csv").write_text("source,prompt\nd.png,seven\n")
  (root / "other.csv").write_text("\n".join(["source,prompt", "c.png,seven", *ROWS[1:]]))
  finished = evaluated / "images" / "same"
  for more, table, message in (
    ((), "plain.csv", "give --source"),
    ((), "gone.csv", "row 0: there is no file 'd.png'"),
    ((f"x={finished}",), "other.csv", "the source images are others than the reference's"),
  ):
    assert evaluate(root, tmp_path / table, *more, table=table) == 2
    assert message in capsys.readouterr().err, message
