"""Damaged folders of pairs, of cached latents and of interrupted conversions.

They are read as they were written, made again, or refused in one line that names the place.

More cases: DMPO_JAX_FUZZ_CASES=1000 python -m pytest tests/data/test_damaged_folders.py
"""

import contextlib
import json
import pathlib
import shutil

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from dmpo_jax.data import FolderPairs, tfds_folder
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert import report as reports
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.latents import cache, records
from dmpo_jax.errors import InputError
from tests.data import test_folder_pairs as folder_pairs
from tests.data.convert.conversions import files
from tests.data.damage import FUZZ, damaged, mutated
from tests.data.latents import caches

ROWS = [folder_pairs.row(i) for i in range(6)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  """Six pairs and their folder."""
  root = tmp_path_factory.mktemp("converted")
  return pathlib.Path(folder_pairs.write(root, ROWS))


@pytest.fixture(scope="module")
def cached(converted, tmp_path_factory):
  out = tmp_path_factory.mktemp("cached") / "out"
  cache.cache_latents(converted, out, caches.encoders(), caches.VIEWS)
  return out


@contextlib.contextmanager
def replaced(path, content: bytes):
  """A file with other content for a while."""
  before = path.read_bytes()
  path.write_bytes(content)
  try:
    yield
  finally:
    path.write_bytes(before)


@contextlib.contextmanager
def read_or_refused(place):
  """A message of one line that names the folder, and no other error."""
  try:
    yield
    event("read")
  except InputError as error:
    event("refused")
    text = str(error)
    assert str(place) in text
    assert text.isprintable(), text
    assert len(text) < 700, text


def read_pairs(folder) -> None:
  assert reports.lines(tfds_folder.read_report(folder))
  tfds_folder.open_folder(folder)
  loader = FolderPairs(folder=str(folder), size=8).loader(
    folder_pairs.tokenize, channels=3, batch_size=6, seed=0
  )
  assert loader[0]["pixels"].shape[0] == 6


def read_latents(folder) -> None:
  loader = caches.load(folder, batch_size=6)
  assert loader[0]["latents"].shape[0] == 6
  cache.lines(records.read_manifest(folder))


CONVERTED = ["report.json", "dataset_info.json", "features.json", "index-train.npy", "*record*"]


@pytest.mark.parametrize("pattern", CONVERTED)
@FUZZ
@given(data=st.data())
def test_a_converted_folder_with_a_damaged_file_is_read_or_refused(converted, pattern, data):
  (path, *_) = sorted(converted.glob(pattern))
  with replaced(path, data.draw(damaged(path.read_bytes()))), read_or_refused(converted):
    read_pairs(converted)


@pytest.mark.parametrize("name", ["report.json", "dataset_info.json", "features.json"])
@FUZZ
@given(data=st.data())
def test_a_converted_folder_with_other_values_is_read_or_refused(converted, name, data):
  path = converted / name
  value = data.draw(mutated(json.loads(path.read_text())))
  with replaced(path, json.dumps(value).encode()), read_or_refused(converted):
    read_pairs(converted)


@pytest.mark.parametrize("pattern", ["manifest.json", "index-train.npy", "pairs-*", "captions-*"])
@FUZZ
@given(data=st.data())
def test_cached_latents_with_a_damaged_file_are_read_or_refused(cached, pattern, data):
  (path, *_) = sorted(cached.glob(pattern))
  with replaced(path, data.draw(damaged(path.read_bytes()))), read_or_refused(cached):
    read_latents(cached)


@FUZZ
@given(data=st.data())
def test_cached_latents_with_other_values_under_a_right_checksum_are_read_or_refused(cached, data):
  path = cached / records.MANIFEST
  value = json.loads(path.read_text())
  value.pop("sha256")
  value = data.draw(mutated(value))
  if isinstance(value, dict):
    value["sha256"] = records.checksum(value)
  with replaced(path, json.dumps(value).encode()), read_or_refused(cached):
    read_latents(cached)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
  """A source, its options, the folder of its conversion, and that of an interrupted one."""
  root = tmp_path_factory.mktemp("interrupted")
  folder_pairs.sets.pickapic(root / "source/train-0.parquet", ROWS, group=2)
  source = source_reader.find("pickapic", root / "source")
  options = Options(rows_per_shard=2)
  convert.convert(source, root / "whole", options)
  convert.convert(source, root / "half", options, host=0, hosts=2)
  return source, options, root / "whole", root / "half"


@FUZZ
@given(data=st.data())
def test_an_interrupted_conversion_with_a_damaged_file_ends_with_the_same_bytes(interrupted, data):
  source, options, whole, half = interrupted
  copy = shutil.copytree(half, half.parent / "copy")
  try:
    path = data.draw(st.sampled_from(sorted(p for p in copy.rglob("*") if p.is_file())))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with read_or_refused(copy):
      convert.convert(source, copy, options)
      assert files(copy) == files(whole)
  finally:
    shutil.rmtree(copy)
