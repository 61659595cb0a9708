"""dmpo-jax score: tables of scores of the images of a folder."""

import csv
import json
import re
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from dmpo_jax.commands.main import main
from dmpo_jax.evaluation import score_files, score_folder, scorers
from dmpo_jax.evaluation.scorers import Kind, Scorer

LEVELS = {"a.png": 0, "b.jpg": 51, "c.png": 255}


@pytest.fixture
def folder(tmp_path):
  """Three grey squares without prompts."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for name, level in LEVELS.items():
    Image.new("RGB", (8, 9), (level,) * 3).save(folder / name)
  (folder / "notes.md").write_text("no image")
  return folder


@pytest.fixture
def length(monkeypatch):
  """A scorer of prompts: their length. Returns the images that were scored."""
  scored = []

  def scores(images, prompts):
    scored.extend(int(image.mean()) for image in images)
    return np.array([len(prompt) for prompt in prompts], float)

  def load(weights, *, dtype, batch_size, devices):
    return Scorer("length", scores, needs_prompts=True)

  monkeypatch.setitem(scorers.SCORERS, "length", Kind(load, "Length of the prompt."))
  return scored


def rows(path):
  with path.open(newline="") as stream:
    return list(csv.DictReader(stream))


def score(*arguments):
  return main(["score", *map(str, arguments), "--no-progress"])


def test_images_without_prompts_are_scored_in_the_order_of_their_names(folder, capsys):
  assert score(folder, "--scorer", "brightness", "--scorer", "warmth") == 0
  table = rows(folder / "scores.csv")
  assert [row["file"] for row in table] == sorted(LEVELS)
  np.testing.assert_allclose([float(r["brightness"]) for r in table], [0, 0.2, 1], atol=1e-6)
  printed = capsys.readouterr().out
  assert "3 images, 3 files\nbrightness: 0.4 [0, 1]" in printed
  assert "warmth: 0 [0, 0]" in printed


def test_a_folder_of_samples_has_its_own_prompts_and_seeds(folder, length, tmp_path, capsys):
  images = [
    {"file": name, "prompt": prompt, "seed": seed}
    for name, prompt, seed in zip(LEVELS, ["fox", "fox", "a house"], [3, 4, 5], strict=True)
  ]
  (folder / "manifest.json").write_text(json.dumps({"pipeline": "x", "images": images}))
  out = tmp_path / "scores.parquet"
  assert score(folder, "--scorer", "length", "--out", out) == 0
  table = pyarrow.parquet.read_table(out).to_pydict()
  assert table == {
    "file": list(LEVELS),
    "prompt": ["fox", "fox", "a house"],
    "seed": [3, 4, 5],
    "length": [3, 3, 7],
  }
  # The interval is over prompts: the mean of (3, 3) and (7).
  assert "3 images, 2 prompts\nlength: 5 [3, 7]" in capsys.readouterr().out


PROMPTS = {
  "p.txt": "one\nlonger\nlongest one\n",
  "p.csv": 'file,prompt\nc.png,longest one\na.png,one\nb.jpg,longer\nz.png,"x, y"\n',
  "p.jsonl": '{"file_name": "a.png", "prompt": "one"}\n{"image": "b.jpg", "prompt": "longer"}\n'
  '{"file": "c.png", "prompt": "longest one"}\n',
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_come_from_a_file(name, folder, length, tmp_path):
  (tmp_path / name).write_text(PROMPTS[name])
  assert score(folder, "--scorer", "length", "--prompts", tmp_path / name) == 0
  assert [float(row["length"]) for row in rows(folder / "scores.csv")] == [3, 6, 11]


def test_prompts_may_lie_beside_the_images(folder, length):
  for name in LEVELS:
    (folder / f"{name[0]}.txt").write_text(f"{name}\n")
  assert score(folder, "--scorer", "length") == 0
  assert [row["prompt"] for row in rows(folder / "scores.csv")] == sorted(LEVELS)


def test_transparent_images_are_scored_over_white_and_grey_ones_as_rgb(folder):
  Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "d.png")
  Image.new("L", (8, 8), 51).save(folder / "e.png")
  assert score(folder, "--scorer", "brightness") == 0
  values = {row["file"]: float(row["brightness"]) for row in rows(folder / "scores.csv")}
  np.testing.assert_allclose([values["d.png"], values["e.png"]], [1, 0.2], atol=1e-6)


def test_a_second_call_scores_nothing_again_and_changed_images_all(
  folder, length, tmp_path, monkeypatch
):
  monkeypatch.setattr(score_files, "CHUNK", 2)
  (tmp_path / "p.txt").write_text(PROMPTS["p.txt"])
  arguments = (folder, "--scorer", "length", "--prompts", tmp_path / "p.txt")
  for _ in range(2):
    assert score(*arguments) == 0
    assert length == [0, 51, 255]
  Image.new("RGB", (8, 8), (102,) * 3).save(folder / "a.png")
  score(*arguments)
  assert 102 in length[3:]


def test_a_call_that_was_interrupted_continues(folder, length, tmp_path, monkeypatch):
  monkeypatch.setattr(score_files, "CHUNK", 1)
  (tmp_path / "p.txt").write_text(PROMPTS["p.txt"])
  arguments = (folder, "--scorer", "length", "--prompts", tmp_path / "p.txt")
  with monkeypatch.context() as patch:
    patch.setattr(score_folder, "write_table", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
      score(*arguments)
  assert not (folder / "scores.csv").exists()
  (folder / "scores.csv.parts" / "length" / "00001.json").write_text("{")
  assert score(*arguments) == 0
  assert length == [0, 51, 255, 51]
  assert len(rows(folder / "scores.csv")) == 3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f, t: (f / "b.jpg").write_bytes(b"no image"), "b.jpg.*: not an image in one of"),
    (lambda f, t: (t / "p.txt").write_text("a\nb\n"), "has 2 lines for 3 images"),
    (lambda f, t: (t / "p.txt").write_text("a\n\nc\n"), "the prompt of .*b.jpg is ''"),
  ],
)
def test_what_is_wrong_is_named_with_its_file(change, message, folder, length, tmp_path, capsys):
  (tmp_path / "p.txt").write_text(PROMPTS["p.txt"])
  change(folder, tmp_path)
  assert score(folder, "--scorer", "length", "--prompts", tmp_path / "p.txt") == 2
  assert re.search(message, capsys.readouterr().err)
  assert not (folder / "scores.csv").exists()


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("p.csv", "file,caption\na.png,x\n", "p.csv, row 1 has no file and prompt, but caption, file"),
    ("p.csv", "file,prompt\na.png,x\nc.png,y\n", "has no row for b.jpg (1 images have none)"),
    (
      "p.csv",
      "file,prompt\na.png,x\na.png,y\n",
      "row 2: a.png has another prompt in an earlier row",
    ),
    ("p.md", "x", "p.md is no file of prompts"),
    ("p.jsonl", "{", "p.jsonl, line 1 is no valid JSON"),
  ],
)
def test_a_file_of_prompts_that_does_not_fit_is_refused(
  name, content, message, folder, length, tmp_path, capsys
):
  (tmp_path / name).write_text(content)
  assert score(folder, "--scorer", "length", "--prompts", tmp_path / name) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--scorer", "length"), "length needs prompts, and"),
    (("--scorer", "warmth", "--scorer", "warmth"), "two scorers have the name warmth"),
    (("--scorer", "warmth", "--out", "x.txt"), "x.txt ends in '.txt'; expected .csv or .parquet"),
    (("--scorer", "beauty"), "unknown scorer 'beauty'"),
    (("--scorer", "pickscore"), "the published one is yuvalkirstain/PickScore_v1"),
  ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, folder, length, capsys):
  assert score(folder, *arguments) == 2
  assert message in capsys.readouterr().err


def test_a_folder_without_images_is_refused(tmp_path, capsys):
  assert score(tmp_path, "--scorer", "warmth") == 2
  assert "has no images (.png" in capsys.readouterr().err
  assert score(tmp_path / "absent", "--scorer", "warmth") == 2
  assert "absent is no folder" in capsys.readouterr().err


def test_the_help_lists_scorers_with_options_and_repositories(capsys):
  with pytest.raises(SystemExit):
    main(["score", "--help"])
  text = capsys.readouterr().out
  for words in ("hpsv2.1=WEIGHTS", "xswu/HPSv2", "Options: tokenizer, antialias.", "colourfulness"):
    assert words in text
