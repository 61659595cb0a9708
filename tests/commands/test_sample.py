"""`dmpo-jax sample`: its files, how it resumes, and its errors."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import dmpo_jax
from dmpo_jax import interop, models, pipelines, sampling
from dmpo_jax.commands.main import main
from tests.interop import tiny

PROMPTS = "the digit seven\n\n  one \n"
STEPS = ["--steps", "2", "--seeds", "2", "--first-seed", "3", "--batch-size", "2"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  return tiny.write_tiny_pixels(tmp_path_factory.mktemp("pixels"))


def sample(pipeline, out, *more):
  arguments = ["sample", "--pipeline", str(pipeline), "--out", str(out), *STEPS, *more]
  if "--prompts" not in more and "--prompt" not in more:
    arguments += ["--prompt", "the digit seven", "--prompt", "one"]
  return main(arguments)


@pytest.fixture(scope="module")
def samples(pipeline, tmp_path_factory):
  folder = tmp_path_factory.mktemp("samples")
  (folder / "prompts.txt").write_text(PROMPTS)
  assert (
    sample(pipeline, folder, "--prompts", str(folder / "prompts.txt"), "--negative", "the") == 0
  )
  return folder


@pytest.fixture
def copy(samples, tmp_path):
  return shutil.copytree(samples, tmp_path / "copy")


def manifest_of(folder):
  return json.loads((folder / "manifest.json").read_text())


def test_there_is_an_image_for_each_prompt_and_seed(samples):
  names = {path.name for path in samples.iterdir()}
  images = {f"{row:05d}_{seed:010d}.png" for row in (0, 1) for seed in (3, 4)}
  assert names == {*images, "grid.png", "manifest.json", "prompts.txt"}


def test_the_grid_has_a_row_for_each_prompt_and_a_column_for_each_seed(samples):
  grid = np.asarray(Image.open(samples / "grid.png"))
  assert grid.shape == (16, 16)
  corner = np.asarray(Image.open(samples / "00001_0000000003.png"))
  np.testing.assert_array_equal(grid[8:, :8], corner)


def test_the_manifest_has_all_settings_of_the_images(samples, pipeline):
  manifest = manifest_of(samples)
  assert manifest["dmpo_jax"] == dmpo_jax.__version__
  assert manifest["pipeline"] == str(pipeline)
  assert manifest["prompts"] == ["the digit seven", "one"]
  assert manifest["seeds"] == [3, 4]
  assert manifest["negative"] == "the"
  assert (manifest["solver"], manifest["steps"], manifest["guidance"]) == ("ddim", 2, 2.0)
  assert (manifest["height"], manifest["width"], manifest["dtype"]) == (8, 8, "float32")
  assert manifest["images"][3] == {"file": "00001_0000000004.png", "prompt": "one", "seed": 4}


def test_an_image_is_that_of_the_sampler(samples, pipeline):
  loaded = pipelines.load(pipeline)
  functions = pipelines.build(loaded, dtype="float32")
  sampler = pipelines.make_sampler(functions, functions.make_solver(2), guidance=2.0, negative=True)
  inputs, _ = pipelines.sampling_inputs(functions, ["one"], np.array([4]), negative="the")
  image = pipelines.sample_all(sampler, loaded.params, inputs, batch_size=1)[0]
  written = np.asarray(Image.open(samples / "00001_0000000004.png")).astype(int)
  assert np.abs(written - np.asarray(sampling.to_uint8(image))[..., 0]).max() <= 1


def test_after_an_interruption_only_missing_images_are_sampled(copy, pipeline, capsys):
  wanted = np.asarray(Image.open(copy / "00000_0000000004.png")).astype(int)
  (copy / "manifest.json").rename(copy / "manifest.unfinished.json")
  for name in ("00000_0000000004.png", "grid.png"):
    (copy / name).unlink()
  kept = {path: path.stat().st_mtime_ns for path in copy.glob("0*.png")}
  prompts = str(copy / "prompts.txt")
  assert sample(pipeline, copy, "--prompts", prompts, "--negative", "the") == 0
  assert "4 images in" in (out := capsys.readouterr().out)
  assert "3 from before" in out
  written = np.asarray(Image.open(copy / "00000_0000000004.png")).astype(int)
  assert np.abs(written - wanted).max() <= 1
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert not (copy / "manifest.unfinished.json").exists()
  assert len(manifest_of(copy)["images"]) == 4


def test_a_folder_with_images_of_other_settings_is_refused(copy, pipeline, capsys):
  before = manifest_of(copy)
  assert sample(pipeline, copy, "--negative", "seven") == 2
  assert "negative: 'the' there, 'seven' here" in capsys.readouterr().err
  assert manifest_of(copy) == before


def test_an_image_without_a_manifest_is_not_overwritten(pipeline, tmp_path, capsys):
  (tmp_path / "grid.png").write_text("mine")
  assert sample(pipeline, tmp_path) == 2
  assert "has a file grid.png and no manifest" in capsys.readouterr().err
  assert (tmp_path / "grid.png").read_text() == "mine"


def test_truncated_prompts_are_counted(pipeline, tmp_path, capsys):
  long = " ".join(["seven"] * 20)
  prompts = ["--prompt", long, "--prompt", "one"]
  assert sample(pipeline, tmp_path / "out", *prompts, "--negative", "the") == 0
  assert "1 prompts are longer" in capsys.readouterr().err
  assert manifest_of(tmp_path / "out")["prompts_truncated"] == 1


def test_a_lora_is_merged_into_the_pipeline(samples, pipeline, tmp_path):
  base, rng = interop.load_pipeline(pipeline).params, np.random.default_rng(0)
  lora = models.lora.init(jax.random.key(0), base["unet"], rank=1)
  lora = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), lora)
  file = tmp_path / "lora.safetensors"
  interop.save_lora(file, interop.Lora({"unet": lora}, {"unet": 1.0}), base)
  assert sample(pipeline, tmp_path / "out", "--negative", "the", "--lora", str(file)) == 0
  name = "00000_0000000003.png"
  with_lora, without = (np.asarray(Image.open(f / name)) for f in (tmp_path / "out", samples))
  assert not np.array_equal(with_lora, without)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--solver", "eular"], "unknown solver 'eular'; did you mean 'euler'"),
    (["--solver", "ddim", "--karras"], "Karras sigmas are asked for"),
    (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    (["--first-seed", "4294967295"], "--first-seed and --seeds give seed 4294967296"),
    (["--steps", "0"], "--steps must be at least 1, got 0"),
    (["--steps", "2000"], "num_steps is 2000; expected 1 to 1000"),
    (["--guidance", "nan"], "--guidance must be finite, got nan"),
    (["--guidance-rescale", "1.5"], "--guidance-rescale must be from 0 to 1, got 1.5"),
    (["--batch-size", "0"], "--batch-size must be at least 1"),
    (["--height", "-8"], "--height must be at least 1, got -8"),
    (["--prompts", "absent.txt"], "cannot read prompts from absent.txt"),
  ],
)
def test_bad_values_are_named_and_nothing_is_written(
  arguments, message, pipeline, tmp_path, capsys
):
  assert sample(pipeline, tmp_path / "out", *arguments) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_an_unsupported_scheduler_needs_a_solver(pipeline, tmp_path, capsys):
  folder = shutil.copytree(pipeline, tmp_path / "pndm")
  file = folder / "scheduler" / "scheduler_config.json"
  config = json.loads(file.read_text())
  file.write_text(json.dumps({**config, "_class_name": "PNDMScheduler"}))
  assert sample(folder, tmp_path / "out") == 2
  assert "scheduler is PNDMScheduler, which is not offered" in capsys.readouterr().err


def test_a_height_between_two_latents_is_refused(tmp_path, capsys):
  folder = tiny.write_tiny_sd(tmp_path / "sd")
  assert sample(folder, tmp_path / "out", "--height", "15") == 2
  assert "height is 15; expected a multiple of 2" in capsys.readouterr().err
