"""Pairs of a model's own samples, and the scorers that label them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.commands.main import main
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.pairs import prompt_key
from dmpo_jax.data.tfds_folder import PairSource
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers import Scorer, load_scorer, pixels
from dmpo_jax.evaluation.scorers.label_pairs import COLUMNS, label_pairs, write_table

LEVELS = (0, 60, 120, 180, 240)
BRIGHTNESS = load_scorer("brightness")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
  """Grey squares of five levels for each of 40 prompts, as `dmpo-jax sample` writes them."""
  folder = tmp_path_factory.mktemp("samples")
  images = []
  for row in range(40):
    for seed, level in enumerate(LEVELS):
      name = f"{row:05d}_{seed:010d}.png"
      Image.new("RGB", (8, 8), (level,) * 3).save(folder / name)
      images.append({"file": name, "prompt": f"square {row}", "seed": seed})
  manifest = {"pipeline": "runs/x/pipeline", "images": images}
  (folder / "manifest.json").write_text(json.dumps(manifest))
  return folder


ONE_IMAGE = '{"pipeline": "x", "images": [{"prompt": "a", "file": "0.png", "seed": 0}]}'


def solid(*colours):
  """Images of one colour each, `[N, 4, 4, 3]`."""
  return np.stack([np.broadcast_to(np.array(c, float) * 2 - 1, (4, 4, 3)) for c in colours])


def test_colourfulness_of_one_colour_is_three_tenths_of_its_distance_from_grey():
  scores = pixels.colourfulness(solid((0.5, 0.5, 0.5), (1, 0, 0), (0, 0, 1)))
  np.testing.assert_allclose(scores, [0, 0.3 * np.hypot(1, 0.5), 0.3], atol=1e-12)


def test_colourfulness_of_two_colours_is_that_of_the_formula_by_hand():
  image = np.where(np.arange(4)[:, None, None] < 2, [[[1.0, -1, -1]]], [[[-1.0, 1, -1]]])
  image = np.broadcast_to(image, (4, 4, 3))  # rg = ±1, yb = 1/2
  np.testing.assert_allclose(pixels.colourfulness(image), 1 + 0.3 * 0.5)


def test_warmth_and_brightness_are_means_of_shown_levels():
  images = solid((1, 0.5, 0), (0, 0, 0.6), (1, 1, 1))
  np.testing.assert_allclose(pixels.warmth(images), [1, -0.6, 0])
  np.testing.assert_allclose(pixels.brightness(3 * images[2:]), [1])  # clipped
  np.testing.assert_allclose(pixels.brightness(images), [0.5, 0.2, 1])


@pytest.mark.parametrize("score", [pixels.brightness, pixels.colourfulness, pixels.warmth])
def test_a_formula_of_pixels_refuses_arrays_that_are_not_images(score):
  with pytest.raises(InputError, match=r"must be \[..., H, W, 3\]"):
    score(np.zeros((4, 4, 1)))
  with pytest.raises(InputError, match="1 of 48 values are NaN"):
    score(np.where(np.arange(48) == 3, np.nan, 0).reshape(4, 4, 3))


def test_every_two_images_of_a_prompt_make_a_pair(samples):
  labelled = label_pairs(samples, scorer=BRIGHTNESS, temperature=0.1, seed=0)
  assert (labelled.statistics["images"], len(labelled.rows)) == (200, 40 * 10)
  assert all(row["image_0"][:5] == row["image_1"][:5] for row in labelled.rows)
  assert len({row["id"] for row in labelled.rows}) == 400
  np.testing.assert_allclose(labelled.rows[0]["score_1"], 60 / 255, rtol=1e-6)
  np.testing.assert_allclose(
    labelled.statistics["score_spread"], np.std(np.array(LEVELS) / 255, ddof=1), rtol=1e-6
  )


def test_labels_follow_the_bradley_terry_probability(samples):
  labelled = label_pairs(samples, scorer=BRIGHTNESS, temperature=0.3, seed=1)
  gap = np.array([row["score_0"] - row["score_1"] for row in labelled.rows])
  label = np.array([row["label_0"] for row in labelled.rows])
  p = 1 / (1 + np.exp(-gap / 0.3))
  assert abs(label.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
  assert labelled.statistics["flip_rate"] == np.mean(label != (gap > 0))
  assert 0 < labelled.statistics["flip_rate"] < 0.5


def test_at_a_low_temperature_the_higher_score_is_always_preferred(samples):
  assert (
    label_pairs(samples, scorer=BRIGHTNESS, temperature=1e-6, seed=0).statistics["flip_rate"] == 0
  )


def test_labels_depend_on_the_seed_alone(samples):
  first, again, other = (
    label_pairs(samples, scorer=BRIGHTNESS, temperature=0.3, seed=seed).rows for seed in (0, 0, 1)
  )
  assert first == again != other


def test_the_table_converts_to_the_canonical_record(samples, tmp_path):
  rows = label_pairs(samples, scorer=BRIGHTNESS, temperature=0.3, seed=0).rows[:6]
  write_table(samples / "pairs.csv", rows)
  with (samples / "pairs.csv").open(newline="") as stream:
    assert tuple(next(csv.reader(stream))) == COLUMNS
  convert.convert(source_reader.find("custom", samples / "pairs.csv"), tmp_path / "out", Options())
  records = PairSource(tmp_path / "out", "train")
  assert [records[i].p0 for i in range(6)] == [row["label_0"] for row in rows]
  assert records[0].prompt_id == prompt_key("square 0")
  assert records[0].model_1 == "runs/x/pipeline"


def test_a_scorer_receives_the_prompt_of_its_image(samples):
  def length(images, prompts):
    assert [image.shape for image in images] == [(8, 8, 3)] * 5
    return np.array([len(prompt) for prompt in prompts], float)

  scorer = Scorer("length", length, needs_prompts=True)
  labelled = label_pairs(samples, scorer=scorer, temperature=0.3, seed=0)
  assert [row["score_0"] for row in labelled.rows] == [len(r["prompt"]) for r in labelled.rows]


def test_a_temperature_that_is_not_positive_is_refused(samples):
  with pytest.raises(InputError, match="temperature of scores must be a positive number"):
    label_pairs(samples, scorer=BRIGHTNESS, temperature=0.0, seed=0)


def test_the_command_refuses_an_unknown_score_and_lists_the_scorers(samples, capsys):
  assert main(["data", "judge", str(samples), "--score", "beauty", "--temperature", "0.1"]) == 2
  assert "unknown scorer 'beauty' (known: " in capsys.readouterr().err


@pytest.mark.parametrize(
  ("manifest", "message"),
  [
    (None, "has no finished samples"),
    ("{", "manifest.json is no valid JSON"),
    ("[]", "expected a JSON object"),
    ('{"images": []}', "there is no pipeline, expected a str; sample into a new folder"),
    ('{"pipeline": 3, "images": []}', "pipeline is 3, expected a str"),
    ('{"pipeline": "x", "images": {}}', "images is {}, expected a list"),
    ('{"pipeline": "x", "images": ["a"]}', "image 0 is 'a', expected an object"),
    ('{"pipeline": "x", "images": [{"prompt": "a"}]}', "image 0: there is no file"),
    (ONE_IMAGE.replace('"0.png"', "7"), "image 0: file is 7, expected a str"),
    (ONE_IMAGE.replace("0}", "true}"), "image 0: seed is True, expected a int"),
    (ONE_IMAGE, "1 of 1 prompts .* have one image"),
    ('{"pipeline": "x", "images": []}', "0 of 0 prompts"),
  ],
)
def test_a_folder_without_samples_to_compare_is_refused(tmp_path, manifest, message):
  if manifest is not None:
    (tmp_path / "manifest.json").write_text(manifest)
  with pytest.raises(InputError, match=message):
    label_pairs(tmp_path, scorer=BRIGHTNESS, temperature=0.1, seed=0)


@pytest.mark.parametrize("file", ["../secret.png", "/etc/passwd", "a" * 5000, "absent.png"])
def test_a_manifest_reaches_no_file_outside_of_its_folder(file, tmp_path):
  Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
  folder = tmp_path / "samples"
  folder.mkdir()
  images = [{"prompt": "a", "file": file, "seed": seed} for seed in (0, 1)]
  (folder / "manifest.json").write_text(json.dumps({"pipeline": "x", "images": images}))
  with pytest.raises(InputError) as error:
    label_pairs(folder, scorer=BRIGHTNESS, temperature=0.1, seed=0)
  assert len(str(error.value)) < 600


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_not_finite_stops_and_names_the_image(score, samples):
  scorer = Scorer("odd", lambda images, prompts: np.full(len(images), score))
  message = f"score odd of .*00000_0000000000.png for the prompt 'square 0' is {score}"
  with pytest.raises(InputError, match=message):
    label_pairs(samples, scorer=scorer, temperature=0.1, seed=0)
