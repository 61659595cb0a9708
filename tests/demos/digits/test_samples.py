"""Samples in a file: they belong to the weights, and a damaged file is made again."""

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmpo_jax.demos.digits.samples import ModelSampler
from dmpo_jax.errors import InputError
from tests.interop import tiny

PROMPTS, SEEDS = ["one", "seven"], np.arange(2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  return tiny.write_tiny_pixels(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def sampler():
  return ModelSampler(num_steps=1, guidance=2.0, batch_size=2)


@pytest.fixture
def file(pipeline, sampler, tmp_path):
  sampler.samples(pipeline, tmp_path / "samples.npz", PROMPTS, SEEDS)
  return tmp_path / "samples.npz"


def changed(pipeline, folder, value):
  """A copy of the pipeline with another bias."""
  shutil.copytree(pipeline, folder)
  weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
  state = load_file(weights)
  state["conv_in.bias"] = np.full_like(state["conv_in.bias"], value)
  save_file(state, weights, metadata={"format": "pt"})
  return folder


def test_samples_of_the_same_weights_are_read(pipeline, sampler, file):
  written = file.stat().st_mtime_ns
  np.testing.assert_array_equal(
    sampler.samples(pipeline, file, PROMPTS, SEEDS), np.load(file)["images"]
  )
  assert file.stat().st_mtime_ns == written


def test_samples_of_other_weights_are_not_read_whatever_the_clock_says(
  pipeline, sampler, file, tmp_path
):
  before = np.load(file)["images"]
  other = changed(pipeline, tmp_path / "other", 0.5)
  os.utime(file, (2**32, 2**32))
  images = sampler.samples(other, file, PROMPTS, SEEDS)
  assert not np.allclose(images, before)
  np.testing.assert_array_equal(np.load(file)["images"], images)


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "pickle", "shape", "nan", "no content"])
def test_a_damaged_file_is_told_and_made_again(kind, pipeline, sampler, file, caplog):
  content = dict(np.load(file))
  wanted = content["images"]
  if kind == "cut":
    file.write_bytes(file.read_bytes()[:200])
  elif kind == "empty":
    file.write_bytes(b"")
  elif kind == "text":
    file.write_text("not an archive")
  elif kind == "pickle":
    np.savez(file, **{**content, "images": np.array([{}], object)})
  elif kind == "shape":
    np.savez(file, **{**content, "images": wanted[:1]})
  elif kind == "nan":
    np.savez(file, **{**content, "images": wanted * np.float32(np.nan)})
  else:
    np.savez(file, images=wanted)
  with caplog.at_level("INFO"):
    images = sampler.samples(pipeline, file, PROMPTS, SEEDS)
  np.testing.assert_allclose(images, wanted, atol=1e-5)
  assert str(file) in caplog.text
  assert "sampling again" in caplog.text
  np.testing.assert_array_equal(np.load(file)["images"], images)


def test_samples_that_are_not_finite_are_named(pipeline, sampler, tmp_path):
  folder = changed(pipeline, tmp_path / "bad", np.nan)
  with pytest.raises(InputError, match="the image of the prompt 'one', seed 0"):
    sampler.samples(folder, tmp_path / "bad.npz", PROMPTS, SEEDS)
  assert not (tmp_path / "bad.npz").exists()
