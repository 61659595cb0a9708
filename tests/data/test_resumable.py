"""The protocol of folders that are written shard by shard."""

import json
import multiprocessing
import pathlib
import threading

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
  folder.mark_done(1, {"count": 5}, {})
  assert folder.missing(2) == [0]
  assert folder.finish(2, lambda: complete(folder), read) is None
  folder.mark_done(0, {"count": 3}, {})
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
  with pytest.raises(InputError, match=r"plan\.json (is no valid JSON|holds \[\])"):
    folder.start(PLAN)


def test_a_folder_with_other_files_is_refused(folder):
  folder.out.mkdir()
  (folder.out / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="holds no cache; choose another folder"):
    folder.start(PLAN)


def test_a_plan_of_the_same_values_in_other_bytes_is_written_again(folder):
  folder.start(PLAN)
  before = (folder.out / resumable.PLAN).read_bytes()
  (folder.out / resumable.PLAN).write_bytes(before.replace(b"{", b"{ ", 1))
  folder.start(PLAN)
  assert (folder.out / resumable.PLAN).read_bytes() == before


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def test_a_refused_plan_changes_nothing(folder):
  folder.start(PLAN)
  before = contents(folder.out)
  with pytest.raises(InputError, match="holds another cache"), folder.session({"version": "2.0.0"}):
    pass
  assert contents(folder.out) == before
  complete(folder)
  assert folder.start(PLAN)
  before = contents(folder.out)
  with pytest.raises(InputError, match="holds another cache"):
    folder.start({"version": "2.0.0"})
  assert contents(folder.out) == before


def refuse(folder, *, write=lambda: None):
  """Work that begins in a session and is refused."""
  with folder.session(PLAN):
    write()
    raise InputError("a bad row")


def test_work_that_is_refused_before_a_shard_is_finished_leaves_the_disk_as_it_was(tmp_path):
  out = tmp_path / "a" / "b"
  folder = ResumableFolder(out, out / "working", out / "final.json", "cache")
  with pytest.raises(InputError, match="a bad row"):
    refuse(folder, write=lambda: (folder.working / "0.tmp").write_text("x"))
  assert list(tmp_path.iterdir()) == []
  out.mkdir(parents=True)
  with pytest.raises(InputError, match="a bad row"):
    refuse(folder)
  assert list(out.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_work_that_is_interrupted_keeps_its_plan(folder, error):
  with pytest.raises(error), folder.session(PLAN):
    raise error
  assert (folder.out / resumable.PLAN).exists()


def test_work_that_is_refused_after_a_shard_keeps_it(folder):
  with pytest.raises(InputError, match="a bad row"):
    refuse(folder, write=lambda: folder.mark_done(0, {}, {}))
  assert folder.is_done(0)
  with pytest.raises(InputError, match="a bad row"):
    refuse(folder)
  assert folder.is_done(0)


@pytest.mark.parametrize(
  ("host", "hosts", "message"),
  [(0, 2, "as host 0 of 2; wait"), (1, 3, "as 2 hosts, not as 3"), (0, 1, "as 2 hosts, not as 1")],
)
def test_two_processes_cannot_do_the_work_of_one_host(folder, host, hosts, message):
  with folder.session(PLAN, host=0, hosts=2):
    before = contents(folder.out)
    with (
      pytest.raises(InputError, match=message),
      folder.session(PLAN, host=host, hosts=hosts),
    ):
      pass
    assert contents(folder.out) == before


def test_several_hosts_work_at_once(folder):
  with folder.session(PLAN, host=0, hosts=2), folder.session(PLAN, host=1, hosts=2):
    pass
  with folder.session(PLAN, host=0, hosts=1):  # the number of hosts may change later
    pass


def test_a_second_process_that_is_refused_does_not_remove_the_first_ones_new_folder(folder):
  with folder.session(PLAN):
    with pytest.raises(InputError, match="another process is writing the cache"):
      refuse(folder)
    assert (folder.out / resumable.PLAN).exists()


def _try(folder, results):
  try:
    with folder.session(PLAN):
      results.put("worked")
  except InputError as error:
    results.put(str(error))


def test_another_process_is_refused_too(folder):
  context = multiprocessing.get_context("fork")
  results = context.Queue()
  with folder.session(PLAN):
    process = context.Process(target=_try, args=(folder, results))
    process.start()
    process.join()
  assert "another process is writing the cache" in results.get(timeout=9)


def test_of_two_hosts_that_see_the_last_shard_one_completes_the_folder(folder):
  folder.start(PLAN)
  folder.mark_done(0, {}, {})
  ready, made, results = threading.Barrier(2), [], []

  def slow():
    made.append(1)
    return complete(folder)

  def host():
    ready.wait()
    results.append(folder.finish(1, slow, read))

  threads = [threading.Thread(target=host) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert made == [1]
  assert sorted(map(len, results)) == [0, 1]


def test_a_host_that_starts_again_waits_while_another_completes_the_folder(folder):
  finished(folder)
  held, moved = threading.Event(), threading.Event()
  results = []

  def restart(shards):
    results.append("checked")

  def completing():
    held.set()
    moved.wait(9)  # its files are neither here nor there
    result = complete(folder)
    folder.remove_working_folder()
    return result

  threads = [
    threading.Thread(target=lambda: folder.finish(1, completing, read)),
    threading.Thread(target=lambda: results.append(folder.unfinished([0], restart))),
  ]
  threads[0].start()
  held.wait(9)
  threads[1].start()
  threads[1].join(0.1)
  assert results == []
  moved.set()
  for thread in threads:
    thread.join()
  assert results == [[]]
  assert folder.is_complete()


def test_a_shard_that_is_taken_back_while_a_host_waits_for_its_turn_is_not_left_out(folder):
  finished(folder)
  (folder.out / "a").write_bytes(b"damaged")
  waiting = threading.Thread(target=lambda: results.append(folder.finish(1, forbidden, read)))
  results = []

  def forbidden():
    raise AssertionError("the damaged shard would be in the data set")

  def restart(shards):
    waiting.start()
    waiting.join(0.1)  # it has seen that no shard is missing, and waits
    folder.restart_damaged(shards)

  assert folder.unfinished([0], restart) == [0]
  waiting.join()
  assert results == [None]


def test_a_host_that_is_overtaken_before_it_looks_for_its_shards_makes_none(folder):
  folder.start(PLAN)
  complete(folder)
  folder.remove_working_folder()
  assert folder.unfinished([0, 1]) == []


def test_a_host_without_finished_shards_makes_all_and_waits_for_none(folder):
  folder.start(PLAN)
  assert folder.unfinished([1, 3]) == [1, 3]


def test_a_file_of_another_host_is_checked_by_its_marker(folder):
  path = finished(folder)
  folder.check_made(0, path)
  path.write_bytes(b"abd")
  with pytest.raises(InputError, match=r"a of shard 0 is missing or damaged; run the command of"):
    folder.check_made(0, path)


def finished(folder) -> pathlib.Path:
  """A shard with one file."""
  folder.start(PLAN)
  (folder.out / "a").write_bytes(b"abc")
  folder.mark_done(0, {"count": 1}, {"a": resumable.fingerprint(folder.out / "a")})
  return folder.out / "a"


def test_a_whole_shard_is_not_made_again(folder):
  finished(folder)
  assert folder.restart_damaged([0, 1]) == []
  assert folder.is_done(0)


@pytest.mark.parametrize("damage", [b"abd", b"ab", None])
def test_a_shard_whose_file_is_damaged_or_gone_is_made_again(folder, damage):
  path = finished(folder)
  path.unlink() if damage is None else path.write_bytes(damage)
  assert folder.restart_damaged([0, 1]) == [0]
  assert not folder.is_done(0)


def test_a_shard_with_any_byte_of_its_marker_changed_is_made_again(folder):
  finished(folder)
  marker = folder.marker(0).read_bytes()
  for place in range(len(marker)):
    folder.marker(0).write_bytes(marker[:place] + b"7" + marker[place + 1 :])
    assert folder.restart_damaged([0]) == [0] or marker[place : place + 1] == b"7"
    folder.marker(0).write_bytes(marker[:place])
    assert folder.restart_damaged([0]) == [0]


def test_a_marker_that_is_damaged_meanwhile_is_named(folder):
  finished(folder)
  folder.marker(0).write_text("{}")
  with pytest.raises(InputError, match=r"000000\.json is damaged; run the same command again"):
    folder.results(1)


@pytest.mark.parametrize("plan", ["{}", '{"shards": true}', '{"shards": -1}', '{"shards": "3"}'])
def test_a_plan_without_a_number_of_shards_is_named(folder, plan):
  folder.out.mkdir()
  (folder.out / resumable.PLAN).write_text(plan)
  with pytest.raises(InputError, match=r"plan\.json is damaged: shards is"):
    resumable.shards(folder.out)
