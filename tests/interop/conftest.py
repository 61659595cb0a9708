"""Pipelines written by torch once a session; tests change copies only."""

import shutil

import pytest

from dmpo_jax import interop
from tests.interop import tiny


@pytest.fixture(scope="session")
def tokenizer():
  return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def pixels_folder(tmp_path_factory):
  return tiny.write_tiny_pixels(tmp_path_factory.mktemp("torch") / "pixels")


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
  return tiny.write_tiny_sd(tmp_path_factory.mktemp("torch") / "sd")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory):
  return tiny.write_tiny_sdxl(tmp_path_factory.mktemp("torch") / "sdxl")


@pytest.fixture(scope="session")
def pipeline(pixels_folder):
  return interop.load_pipeline(pixels_folder)


@pytest.fixture(scope="session")
def sdxl(sdxl_folder):
  return interop.load_pipeline(sdxl_folder)


@pytest.fixture(scope="session")
def saved(pipeline, tmp_path_factory):
  """A pipeline that we wrote."""
  folder = tmp_path_factory.mktemp("ours") / "pipeline"
  interop.save_pipeline(folder, pipeline)
  return folder


@pytest.fixture
def broken(pixels_folder, tmp_path):
  """A copy to damage."""
  return shutil.copytree(pixels_folder, tmp_path / "broken")
