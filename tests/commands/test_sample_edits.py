"""`dmpo-jax sample` with pipelines that edit images: pairing, manifest, and errors."""

import json

import numpy as np
import pytest
from PIL import Image

from dmpo_jax import pipelines, sampling
from dmpo_jax.commands.main import main
from dmpo_jax.data import crops, images
from tests.interop import tiny

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  return tiny.write_tiny_pixel_editing(tmp_path_factory.mktemp("editing"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  for name, size in (("b.png", (8, 8)), ("a.png", (8, 8)), ("wide.png", (32, 16))):
    Image.fromarray(RNG.integers(0, 256, size[::-1], np.uint8)).save(folder / name)
  return folder


def sample(pipeline, out, *more):
  common = ["--steps", "2", "--seeds", "1", "--batch-size", "4", "--out", str(out)]
  return main(["sample", "--pipeline", str(pipeline), *common, *map(str, more)])


@pytest.fixture(scope="module")
def samples(pipeline, pictures, tmp_path_factory):
  out = tmp_path_factory.mktemp("samples")
  more = ("--source", pictures, "--prompt", "seven", "--prompt", "one")
  assert sample(pipeline, out, *more, "--image-guidance", "2", "--guidance", "4") == 0
  return out


def manifest_of(folder):
  return json.loads((folder / "manifest.json").read_text())


def test_every_instruction_edits_every_image_of_a_folder(samples, pictures):
  listed = manifest_of(samples)["images"]
  pairs = [(image["source_file"], image["prompt"]) for image in listed]
  names = ("a.png", "b.png", "wide.png")
  assert pairs == [(str(pictures / name), text) for name in names for text in ("seven", "one")]


def test_the_manifest_has_the_scale_and_the_digest_of_the_sources(samples):
  manifest = manifest_of(samples)
  assert (manifest["guidance"], manifest["image_guidance"]) == (4.0, 2.0)
  assert len(manifest["content"]["sources"]) == 64


def test_a_source_of_another_size_is_scaled_and_cropped_as_training_crops_in_the_middle(
  samples, pictures
):
  copy = Image.open(samples / manifest_of(samples)["images"][-1]["source"])
  encoded = images.read((pictures / "wide.png").read_bytes()).encoded
  expected, _ = crops.load(encoded, crops.CENTER, size=8, channels=1)
  np.testing.assert_array_equal(np.asarray(copy), expected[..., 0])


def test_an_edit_is_that_of_the_sampler(samples, pipeline):
  image = manifest_of(samples)["images"][2]
  loaded = pipelines.load(pipeline)
  functions = pipelines.build(loaded, dtype="float32")
  sampler = pipelines.make_sampler(
    functions, functions.make_solver(2), guidance=4.0, image_guidance=2.0
  )
  source = np.asarray(Image.open(samples / image["source"]))[None, ..., None]
  inputs, _ = pipelines.sampling_inputs(functions, ["seven"], np.array([0]), source=source)
  edit = pipelines.sample_all(sampler, loaded.params, inputs, batch_size=4)[0]
  written = np.asarray(Image.open(samples / image["file"])).astype(int)
  assert np.abs(written - np.asarray(sampling.to_uint8(edit))[..., 0]).max() <= 1


def test_a_table_names_the_source_of_each_instruction(pipeline, pictures, tmp_path):
  (tmp_path / "edits.csv").write_text("source,prompt\nb.png,one\na.png,seven\nb.png,one\n")
  assert sample(pipeline, tmp_path / "out", "--prompts", tmp_path / "edits.csv") == 2
  more = ("--prompts", tmp_path / "edits.csv", "--source", pictures)
  assert sample(pipeline, tmp_path / "out", *more) == 0
  listed = manifest_of(tmp_path / "out")["images"]
  pairs = [(image["source_file"], image["prompt"]) for image in listed]
  assert pairs == [(str(pictures / "b.png"), "one"), (str(pictures / "a.png"), "seven")]


def test_other_sources_are_refused_in_a_folder_of_edits(samples, pipeline, pictures, capsys):
  more = ("--source", pictures / "a.png", "--prompt", "seven", "--prompt", "one")
  assert sample(pipeline, samples, *more, "--image-guidance", "2", "--guidance", "4") == 2
  assert "images of other settings" in capsys.readouterr().err


def test_options_of_edits_that_do_not_fit_are_refused(pipeline, pictures, tmp_path, capsys):
  plain = tiny.write_tiny_pixels(tmp_path / "plain")
  (tmp_path / "text.png").write_text("no image")
  source = ("--source", pictures)
  for folder, more, message in (
    (pipeline, (), "edits images, and there are no source images; give --source"),
    (plain, source, "makes images from text alone: source images have no effect"),
    (plain, ("--image-guidance", "1.5"), "image guidance 1.5 has no effect"),
    (pipeline, (*source, "--image-guidance", "0.5"), "--image-guidance must be at least 1"),
    (pipeline, (*source, "--image-guidance", "nan"), "--image-guidance must be at least 1"),
    (pipeline, (*source, "--image-guidance", "2", "--guidance", "1"), "2 has no effect without"),
    (pipeline, ("--source", tmp_path / "none"), "is no file and no folder"),
    (pipeline, ("--source", tmp_path / "plain"), "has no images"),
    (pipeline, ("--source", tmp_path / "text.png"), "not an image in one of the formats"),
  ):
    assert sample(folder, tmp_path / "out", "--prompt", "one", *more) == 2
    assert message in capsys.readouterr().err, message
  assert not (tmp_path / "out").exists()
