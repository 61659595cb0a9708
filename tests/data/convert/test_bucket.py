"""A conversion to a bucket, by several processes at once."""

import multiprocessing

import pytest

from dmpo_jax.data import tfds_folder
from dmpo_jax.data.convert import convert
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from tests import buckets
from tests.data import sets
from tests.data.convert.conversions import all_pairs, files, pickapic

OPTIONS = Options(rows_per_shard=4, duplicates="drop", splits={"train": 0.6, "test": 0.4})


def contents(folder) -> dict[str, bytes]:
  return {name: (folder / name).read_bytes() for name in folder.find()}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
  """A source, and the folder of its conversion on the local disk."""
  root = tmp_path_factory.mktemp("local")
  rows = [sets.pickapic_row(i, ranking_id=i) for i in range(12)]
  source = pickapic(root, [*rows, sets.pickapic_row(3, ranking_id=99)])
  convert.convert(source, root / "out", OPTIONS)
  return source, root / "out"


def _convert(source, out, host, results):
  results.put(convert.convert(source, out, OPTIONS, host=host, hosts=2) is not None)


def test_two_processes_write_the_data_set_of_the_local_disk_to_the_byte(local):
  source, expected = local
  out, context = buckets.folder(), multiprocessing.get_context("spawn")
  results = context.Queue()
  tasks = [context.Process(target=_convert, args=(source, out, host, results)) for host in range(2)]
  for task in tasks:
    task.start()
  finished = [results.get(timeout=120) for _ in tasks]
  for task in tasks:
    task.join()
  assert any(finished)
  assert contents(out) == files(expected)  # and nothing of the work is left
  assert all_pairs(out, "test") == all_pairs(expected, "test")


def test_a_conversion_that_ended_before_its_last_step_goes_on(local, monkeypatch):
  source, expected = local
  out = buckets.folder()
  with monkeypatch.context() as patch:
    patch.setattr(convert.finalize, "_write_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      convert.convert(source, out, OPTIONS)
  with pytest.raises(InputError, match="holds no finished data set"):
    tfds_folder.check_files(out)
  convert.convert(source, out, OPTIONS)
  assert contents(out) == files(expected)


def test_a_shard_that_is_cut_short_is_refused_by_its_size(local):
  source, _ = local
  out = buckets.folder()
  convert.convert(source, out, OPTIONS)
  shard = next(out.glob("*.array_record-*"))
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(InputError, match=r"bytes, \d+ were written; copy it again"):
    tfds_folder.check_files(out)
