"""`dmpo-jax sample`: its files, how it resumes, and its errors."""

import json
import os
import re
import shutil
import threading

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import dmpo_jax
from dmpo_jax import interop, models, pipelines, sampling
from dmpo_jax.commands.main import main
from dmpo_jax.data import prompt_sets
from dmpo_jax.sampling import image_folder
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
  assert set(manifest["content"]) == {"weights", "configs", "solver", "tokens"}
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
  written = np.asarray(Image.open(copy / "00000_0000000004.png"))
  np.testing.assert_array_equal(written, wanted)  # batches are the same as without interruption
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert not (copy / "manifest.unfinished.json").exists()
  assert len(manifest_of(copy)["images"]) == 4


def test_a_folder_with_images_of_other_settings_is_refused(copy, pipeline, capsys):
  before = manifest_of(copy)
  assert sample(pipeline, copy, "--negative", "seven") == 2
  assert "negative: 'the' there, 'seven' here" in capsys.readouterr().err
  assert manifest_of(copy) == before


@pytest.fixture
def changed(pipeline, tmp_path):
  """The pipeline with a UNet that a function of its state changes."""

  def change(name, function):
    folder = shutil.copytree(pipeline, tmp_path / name)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    function(state)
    save_file(state, file, metadata={"format": "pt"})
    return folder

  return change


def scale_bias(factor):
  def scale(state):
    state["conv_in.bias"] = state["conv_in.bias"] * 0 + np.float32(factor)

  return scale


AGAIN = ["--negative", "the"]


def test_a_folder_of_images_belongs_to_the_weights_and_not_to_their_path(
  copy, pipeline, changed, tmp_path, capsys
):
  same = shutil.copytree(pipeline, tmp_path / "moved")
  assert sample(same, copy, *AGAIN) == 0
  assert "4 from before" in capsys.readouterr().out
  assert sample(changed("other", scale_bias(0.5)), copy, *AGAIN) == 2
  assert "content.weights: '" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["manifest.json", "manifest.unfinished.json"])
def test_after_an_interruption_other_weights_do_not_continue_a_folder(left, copy, changed, capsys):
  (copy / "manifest.json").rename(copy / left)
  (copy / "00000_0000000004.png").unlink()
  assert sample(changed("other", scale_bias(0.5)), copy, *AGAIN) == 2
  assert "content.weights" in capsys.readouterr().err
  assert not (copy / "00000_0000000004.png").exists()


@pytest.mark.parametrize(
  ("file", "change", "what"),
  [
    ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "content.solver"),
    ("unet/config.json", {"norm_eps": 1e-3}, "content.configs"),
  ],
)
def test_a_folder_of_images_belongs_to_the_configs_too(
  file, change, what, copy, pipeline, tmp_path, capsys
):
  folder = shutil.copytree(pipeline, tmp_path / "other")
  (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **change}))
  assert sample(folder, copy, *AGAIN) == 2
  assert what in capsys.readouterr().err


def test_who_wrote_a_config_does_not_matter(copy, pipeline, tmp_path):
  folder = shutil.copytree(pipeline, tmp_path / "other")
  for name in ("unet/config.json", "scheduler/scheduler_config.json"):
    config = {**json.loads((folder / name).read_text()), "_diffusers_version": "9.9"}
    (folder / name).write_text(json.dumps(config))
  assert sample(folder, copy, *AGAIN) == 0


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_damaged_image_is_told_and_sampled_again(content, copy, pipeline, capsys):
  image = copy / "00001_0000000003.png"
  wanted = np.asarray(Image.open(image)).astype(int)
  image.write_bytes(image.read_bytes()[:-20] if content is None else content)
  assert sample(pipeline, copy, *AGAIN) == 0
  printed = capsys.readouterr()
  assert "1 of the images" in printed.err
  assert "00001_0000000003.png" in printed.err
  assert "3 from before" in printed.out
  assert np.abs(np.asarray(Image.open(image)).astype(int) - wanted).max() <= 1


def test_an_image_of_another_size_is_sampled_again(copy, pipeline, capsys):
  Image.new("L", (9, 8)).save(copy / "00001_0000000003.png")
  assert sample(pipeline, copy, *AGAIN) == 0
  assert "1 of the images" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{", '{"prompts": ' + "[" * 3000 + "]" * 3000 + "}"])
def test_a_damaged_manifest_is_one_line(content, copy, pipeline, capsys):
  (copy / "manifest.json").write_text(content)
  assert sample(pipeline, copy, *AGAIN) == 2
  [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dmpo-jax: ")]
  assert str(copy / "manifest.json") in line
  assert "give another folder" in line


def test_a_folder_that_was_left_without_images_takes_other_settings(copy, pipeline):
  (copy / "manifest.json").rename(copy / "manifest.unfinished.json")
  for image in copy.glob("*.png"):
    image.unlink()
  assert sample(pipeline, copy, "--negative", "seven") == 0
  assert manifest_of(copy)["negative"] == "seven"


def test_two_commands_do_not_sample_into_one_folder(pipeline, tmp_path, capsys):
  with image_folder.locked(tmp_path / "out"):
    assert sample(pipeline, tmp_path / "out") == 2
  assert "another process is sampling into" in capsys.readouterr().err
  assert sample(pipeline, tmp_path / "out") == 0


# --- numbers that are not finite ---


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value, changed, tmp_path, capsys):
  assert sample(changed("bad", scale_bias(value)), tmp_path / "out") == 2
  assert "weights hold values that are not finite, in unet.conv_in.bias" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_weights_above_the_range_of_float16_are_named(changed, tmp_path, capsys):
  folder = changed("large", scale_bias(1e5))
  assert sample(folder, tmp_path / "out", "--dtype", "float16") == 2
  error = capsys.readouterr().err
  assert "the weights exceed the range of float16, in unet.conv_in.bias" in error
  assert "--dtype bfloat16" in error
  assert not (tmp_path / "out").exists()


def test_an_image_that_is_not_finite_stops_and_is_not_written(changed, tmp_path, capsys):
  def grow(state):
    state["conv_out.weight"] = state["conv_out.weight"] * np.float32(3e4)
    state["conv_out.bias"] = state["conv_out.bias"] * 0 + np.float32(6.5e4)

  folder, few = changed("grows", grow), ("--prompt", "one", "--steps", "1", "--seeds", "1")
  assert sample(folder, tmp_path / "out", "--dtype", "float16", *few) == 2
  error = capsys.readouterr().err
  assert re.search("the image of the prompt 'one', seed 3, has .* of 64 values that are not", error)
  assert "--dtype bfloat16" in error
  assert not list((tmp_path / "out").glob("*.png"))


# --- files of prompts ---


@pytest.mark.parametrize(
  ("content", "prompts"),
  [
    ("the digit\u2028seven\none\n".encode(), ["the digit\u2028seven", "one"]),
    ("a\u0085b\x0bc\x1cd\n".encode(), ["a\u0085b\x0bc\x1cd"]),
    (b"\xef\xbb\xbfthe digit\r\none\r", ["the digit", "one"]),
    ("one\n".encode("utf-16"), ["one"]),
  ],
)
def test_lines_of_a_file_of_prompts_end_at_line_ends_and_marks_are_no_text(
  content, prompts, tmp_path
):
  (tmp_path / "prompts.txt").write_bytes(content)
  assert prompt_sets.lines(tmp_path / "prompts.txt") == prompts


def test_prompts_are_read_from_a_pipe(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  threading.Thread(target=(tmp_path / "pipe").write_text, args=("one\n",)).start()
  assert prompt_sets.lines(tmp_path / "pipe") == ["one"]


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
    (["--guidance", "nan"], "--guidance must be a finite float32 number, got nan"),
    (["--guidance", "1e39"], "--guidance must be a finite float32 number, got 1e+39"),
    (["--guidance", "0", "--negative", "x"], "--negative has no effect without guidance, and 0 is"),
    (["--guidance", "1", "--guidance-rescale", "0.5"], "--guidance-rescale has no effect without"),
    (["--crop", "0", "0"], "--crop has no effect: this pipeline is not conditioned on sizes"),
    (["--original-size", "-5", "8"], "--original-size must be at least 1, got -5"),
    (["--height", "1000000000"], "--height must be at most 16384, got 1000000000"),
    (["--seeds", "4000000000"], "2 prompts with --seeds 4000000000 are more than 1000000 images"),
    (["--prompt", "seven\udcff"], "the prompt 'seven\\udcff' is not UTF-8 text"),
    (["--prompts", "/dev/zero"], "/dev/zero has more than 67108864 bytes"),
    (["--prompts", "/"], "/ is no file"),
    (["--guidance-rescale", "1.5"], "--guidance-rescale must be from 0 to 1, got 1.5"),
    (["--batch-size", "0"], "--batch-size must be at least 1"),
    (["--height", "-8"], "--height must be at least 1, got -8"),
    (
      ["--prompts", "absent.txt"],
      "absent.txt is missing; give a text file with one prompt per line",
    ),
  ],
)
def test_bad_values_are_named_and_nothing_is_written(
  arguments, message, pipeline, tmp_path, capsys
):
  assert sample(pipeline, tmp_path / "out", *arguments) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_an_unsupported_scheduler_needs_a_solver(pipeline, tmp_path, capsys):
  folder = shutil.copytree(pipeline, tmp_path / "unipc")
  file = folder / "scheduler" / "scheduler_config.json"
  config = json.loads(file.read_text())
  file.write_text(json.dumps({**config, "_class_name": "UniPCMultistepScheduler"}))
  assert sample(folder, tmp_path / "out") == 2
  assert "scheduler is UniPCMultistepScheduler, which is not offered" in capsys.readouterr().err


def test_a_height_between_two_latents_is_refused(tmp_path, capsys):
  folder = tiny.write_tiny_sd(tmp_path / "sd")
  assert sample(folder, tmp_path / "out", "--height", "15") == 2
  assert "height is 15; expected a multiple of 2" in capsys.readouterr().err
