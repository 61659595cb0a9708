"""The protocol of folders that are written shard by shard."""

import json

import pytest

from dmpo_jax.data import resumable
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError

PLAN = {"version": "2.0.0", "options": {"size": 8}}


@pytest.fixture
def folder(tmp_path):
  out = tmp_path / "out"
  return ResumableFolder(out, out / "working", out / "final.json", "cache")


def complete(folder: ResumableFolder) -> dict:
  folder.final.write_text("{}")
  return {"made": True}


def read(out) -> dict:
  return json.loads((out / "final.json").read_text())


def test_a_folder_is_complete_when_all_shards_are(folder):
  assert not folder.start(PLAN)
  folder.mark_done(1, {"count": 5})
  assert folder.missing(2) == [0]
  assert folder.finish(2, lambda: complete(folder), read) is None
  folder.mark_done(0, {"count": 3})
  assert [result["count"] for result in folder.results(2)] == [3, 5]
  assert folder.finish(2, lambda: complete(folder), read) == {"made": True}
  assert folder.start(PLAN)
  assert not folder.working.exists()


def test_a_host_that_lost_its_files_to_the_one_that_completed_reads_the_result(folder):
  folder.start(PLAN)

  def overtaken():
    complete(folder)
    raise FileNotFoundError

  assert folder.finish(0, overtaken, read) == {}


def test_a_missing_file_of_an_incomplete_folder_is_an_error(folder):
  folder.start(PLAN)
  with pytest.raises(FileNotFoundError):
    folder.finish(0, lambda: (folder.out / "absent").read_text(), read)


def test_another_plan_is_refused_with_its_difference(folder):
  folder.start(PLAN)
  with pytest.raises(InputError, match=r"holds another cache(.|\n)*options\.size: 8 there, 9 here"):
    folder.start(PLAN | {"options": {"size": 9}})


@pytest.mark.parametrize("former", [{"version": "1.0.0"}, {"record": "1.0.0"}])
def test_a_folder_of_an_earlier_format_is_refused_with_both_versions(folder, former):
  folder.start(PLAN)
  (folder.out / resumable.PLAN).write_text(json.dumps(former))
  with pytest.raises(
    InputError, match=r"by another version .*now 2\.0\.0\); choose another folder"
  ):
    folder.start(PLAN)


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_damaged_plan_is_named(folder, damage):
  folder.start(PLAN)
  (folder.out / resumable.PLAN).write_text(damage)
  with pytest.raises(InputError, match=r"plan\.json is damaged"):
    folder.start(PLAN)


def test_a_folder_with_other_files_is_refused(folder):
  folder.out.mkdir()
  (folder.out / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="holds no cache; choose another folder"):
    folder.start(PLAN)
