"""Converted pairs and their cached latents for tests."""

import shutil

import pytest

from dmpo_jax.data.latents import cache
from tests.data import test_folder_pairs as folder_pairs
from tests.data.latents.caches import VIEWS, encoders


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Ten pairs; pair 9 has the caption of pair 1."""
  rows = [folder_pairs.row(i) for i in range(9)] + [folder_pairs.row(9, caption="caption 1")]
  return folder_pairs.write(tmp_path_factory.mktemp("pairs"), rows)


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
  """Three views of each pair, as float32."""
  out = tmp_path_factory.mktemp("cached") / "out"
  cache.cache_latents(pairs, out, encoders(), VIEWS)
  return out


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")
