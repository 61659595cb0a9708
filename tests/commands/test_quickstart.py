"""The quickstart with few steps, resumed, and its pipelines in other commands."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dmpo_jax.commands.main import main

ARGUMENTS = ["--reference-steps", "4", "--steps", "3", "--images-per-caption", "8", "--no-progress"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished quickstart of a few steps."""
  folder = tmp_path_factory.mktemp("quickstart")
  assert main(["quickstart", "--workdir", str(folder), *ARGUMENTS]) == 0
  return folder


@pytest.mark.slow
def test_the_report_needs_no_other_file(workdir):
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/png;base64,") >= 5
  assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.mark.slow
def test_every_model_has_scores_with_intervals(workdir):
  models = json.loads((workdir / "results.json").read_text())["models"]
  assert [model["name"] for model in models] == ["reference", "dmpo", "dpo", "cdpo"]
  for model in models:
    for name in ("ink", "digit_accuracy", *(["win_rate"] if model["win_rate"] else [])):
      value, low, high = model[name]
      assert 0 <= low <= value <= high <= 1
  assert [model["win_rate"] is None for model in models] == [True, False, False, False]


@pytest.mark.slow
def test_the_scores_are_those_of_the_samples_on_disk(workdir):
  results = json.loads((workdir / "results.json").read_text())
  images = {
    model["name"]: np.load(workdir / model["name"] / "samples_8.npz")["images"]
    for model in results["models"]
  }
  ink = {name: np.clip((x + 1) / 2, 0, 1).mean((1, 2, 3)) for name, x in images.items()}
  for model in results["models"]:
    np.testing.assert_allclose(model["ink"][0], ink[model["name"]].mean(), rtol=1e-5)
    if model["name"] != "reference":
      won = (ink[model["name"]] > ink["reference"]) + 0.5 * (ink[model["name"]] == ink["reference"])
      np.testing.assert_allclose(model["win_rate"][0], won.mean(), rtol=1e-6)


@pytest.mark.slow
def test_torch_diffusers_samples_the_same_images_from_the_export(workdir):
  check = json.loads((workdir / "results.json").read_text())["export"]["torch_check"]
  assert check["images"] == 20
  assert check["max_abs_difference"] < 1e-3


@pytest.mark.slow
def test_alignment_changes_the_references_unet_and_not_its_text_encoder(workdir):
  def weights(name, part, file):
    return load_file(workdir / name / "pipeline" / part / file)

  text = [weights(name, "text_encoder", "model.safetensors") for name in ("reference", "dmpo")]
  assert all(np.array_equal(text[0][key], text[1][key]) for key in text[0])
  unet = [
    weights(name, "unet", "diffusion_pytorch_model.safetensors") for name in ("reference", "dmpo")
  ]
  moved = max(np.abs(unet[0][key] - unet[1][key]).max() for key in unet[0])
  assert 0 < moved < 0.01


@pytest.mark.slow
def test_a_second_start_trains_and_samples_nothing(workdir):
  files = [*workdir.glob("*/metrics/train-000000.jsonl"), *workdir.glob("*/samples_8.npz")]
  before = {path: path.stat().st_mtime_ns for path in files}
  assert len(before) == 8
  assert main(["quickstart", "--workdir", str(workdir), *ARGUMENTS]) == 0
  assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.slow
def test_sample_gives_the_quickstarts_images_from_its_pipeline(workdir, tmp_path):
  arguments = ["--pipeline", str(workdir / "dmpo" / "pipeline"), "--out", str(tmp_path)]
  # The quickstart's image 3 of the digit four has the seed 4 * 8 + 3.
  settings = ["--steps", "20", "--guidance", "2", "--seeds", "2", "--first-seed", "35"]
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("the digit four\n\nthe digit nine\n")
  assert main(["sample", *arguments, *settings, "--prompts", str(prompts)]) == 0
  wanted = np.load(workdir / "dmpo" / "samples_8.npz")["images"].reshape(10, 8, 8, 8)
  wanted = np.clip(np.round(127.5 * (wanted + 1)), 0, 255)
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  names = {(row["prompt"], row["seed"]): row["file"] for row in manifest["images"]}
  assert len(names) == 4
  for seed in (35, 36):
    picture = np.asarray(Image.open(tmp_path / names["the digit four", seed]), np.float32)
    assert np.abs(picture - wanted[4, seed - 32]).max() <= 1
  assert Image.open(tmp_path / "grid.png").size == (16, 16)


def test_too_few_images_per_caption_are_refused(tmp_path, capsys):
  arguments = ["--workdir", str(tmp_path), "--images-per-caption", "2"]
  assert main(["quickstart", *arguments]) == 2
  assert "--images-per-caption must be at least 8, got 2" in capsys.readouterr().err


@pytest.mark.slow
def test_with_flow_matching_the_same_experiment_has_its_own_networks_and_report(tmp_path):
  assert main(["quickstart", "--flow", "--workdir", str(tmp_path), *ARGUMENTS]) == 0
  results = json.loads((tmp_path / "results.json").read_text())
  assert [model["name"] for model in results["models"]] == ["reference", "dmpo", "dpo"]
  assert results["export"]["torch_check"]["max_abs_difference"] < 1e-3
  assert "transformer/config.json" in results["export"]["files"]
  assert "dmpo-jax quickstart --flow" in (tmp_path / "report.html").read_text()
