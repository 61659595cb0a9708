"""Pipelines in a bucket, of which weights are read in ranges."""

import collections
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dmpo_jax import interop
from dmpo_jax.common.bucket import BucketPath
from dmpo_jax.errors import InputError
from dmpo_jax.parallel import sharding
from tests import buckets
from tests.interop import helpers


@pytest.fixture(scope="module")
def bucket(sdxl_folder):
  folder = buckets.folder()
  folder.upload_folder(sdxl_folder)
  return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty folder for copies of objects."""
  monkeypatch.setenv("DMPO_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_weights_of_a_bucket_are_read_in_ranges_and_are_not_copied(
  bucket, sdxl, sdxl_folder, cache, monkeypatch
):
  read, counts = BucketPath.read_range, collections.Counter()

  def counting(path, start, end):
    counts[path.relative_to(bucket).as_posix()] += end - start
    return read(path, start, end)

  monkeypatch.setattr(BucketPath, "read_range", counting)
  mesh = sharding.make_mesh(4, fsdp=4)
  rows = lambda leaf: NamedSharding(mesh, PartitionSpec())  # noqa: E731
  loaded = interop.load_pipeline(bucket, shardings=lambda _, tree: jax.tree.map(rows, tree))
  helpers.assert_same_trees(jax.tree.map(np.asarray, loaded.params), sdxl.params)
  sizes = {p.relative_to(sdxl_folder).as_posix(): p.stat().st_size for p in sdxl_folder.rglob("*")}
  weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
  assert {name: counts[name] for name in weights} == weights  # each byte once
  assert not list(cache.rglob("*.safetensors"))


def test_a_single_network_of_a_bucket_is_read(bucket, sdxl, cache):
  config, params = interop.load_network(str(bucket), subfolder="vae")
  assert config == sdxl.configs["vae"]
  helpers.assert_same_trees(params, sdxl.params["vae"])


def test_a_network_without_weights_in_a_bucket_is_named(sdxl_folder, tmp_path, cache):
  folder = buckets.folder()
  copy = shutil.copytree(sdxl_folder, tmp_path / "copy")
  for file in (copy / "vae").glob("*.safetensors"):
    file.unlink()
  folder.upload_folder(copy)
  with pytest.raises(InputError, match="vae"):
    interop.load_pipeline(folder)
