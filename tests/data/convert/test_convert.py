"""A conversion in one process, in many, and on several hosts."""

import json
import os
import pathlib
import shutil
import signal
import threading

import numpy as np
import pytest

from dmpo_jax.data import pairs, record_writer, tfds_folder
from dmpo_jax.data.convert import convert, finalize, paths, source_reader
from dmpo_jax.data.convert import report as reports
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.tables import parquet
from dmpo_jax.errors import InputError
from tests.common.full_disk import full_disk
from tests.data import sets
from tests.data.convert.conversions import TIE, all_pairs, files, pickapic, run


def test_records_are_the_rows(tmp_path):
  rows = [sets.pickapic_row(i) for i in range(5)]
  run(tmp_path, rows)
  for row, pair in zip(rows, all_pairs(tmp_path / "out"), strict=True):
    assert pairs.validate(pair) is pair
    assert (pair.image_0, pair.image_1, pair.prompt) == (row["jpg_0"], row["jpg_1"], row["caption"])
    assert (pair.p0, pair.weight, pair.source) == (row["label_0"], 0.5, "pickapic")
    assert (pair.size_0, pair.user_id, pair.model_1) == ((12, 16), "7", "right")


def test_a_prompt_is_in_one_split_alone(whole):
  _, _, out, report = whole
  prompts = [{p.prompt for p in all_pairs(out, s)} for s in report["splits"]]
  assert len(prompts) == 2
  assert not prompts[0] & prompts[1]
  assert [s["prompts"] for s in report["splits"].values()] == [len(p) for p in prompts]


def test_several_processes_write_the_same_folder(whole, tmp_path):
  source, options, out, report = whole
  assert convert.convert(source, tmp_path / "out", options, workers=2) == report
  assert files(tmp_path / "out") == files(out)


def test_a_bad_row_in_another_process_stops_the_conversion(tmp_path):
  rows = [sets.pickapic_row(i) for i in range(12)]
  rows[5]["jpg_0"] = b"broken"
  source, options = pickapic(tmp_path, rows), Options(rows_per_shard=4)
  with pytest.raises(InputError, match=r"train-0.parquet, row 5: not an image"):
    convert.convert(source, tmp_path / "out", options, workers=2)
  assert not list((tmp_path / "out").rglob("*.tmp"))


def test_ctrl_c_waits_until_workers_have_started():
  """Workers inherit the blocked signal; half a start would be a traceback of theirs."""
  submitted = []

  class Pool:
    def submit(self, *job):
      assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
      os.kill(os.getpid(), signal.SIGINT)
      submitted.append(job)
      return len(submitted)

  with pytest.raises(KeyboardInterrupt):
    convert._submit(Pool(), [(1,), (2,)])
  assert len(submitted) == 2
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_several_hosts_share_the_work_and_the_last_one_finishes(whole, tmp_path):
  source, options, out, report = whole
  again = tmp_path / "out"
  assert convert.convert(source, again, options, host=1, hosts=2) is None
  assert convert.missing(again) == 2
  assert convert.convert(source, again, options, host=0, hosts=2) == report
  assert files(again) == files(out)


def test_a_damaged_index_of_another_hosts_chunk_is_found_before_the_set_is_made(whole, tmp_path):
  source, options, out, _ = whole
  again = tmp_path / "out"
  convert.convert(source, again, options, host=1, hosts=2)
  index = paths.index(again / paths.WORKING, 1)
  content = bytearray(index.read_bytes())
  content[-80] ^= 1  # a bit of a hash: any value there looks right
  index.write_bytes(content)
  with pytest.raises(InputError, match=r"000001\.npy of shard 1 is missing or damaged"):
    convert.convert(source, again, options, host=0, hosts=2)
  convert.convert(source, again, options, host=1, hosts=2)
  assert files(again) == files(out)


def test_a_bit_of_the_index_that_looks_right_is_found_by_its_digest(whole, tmp_path):
  copy = shutil.copytree(whole[2], tmp_path / "copy")
  index = next(copy.glob("index-*.npy"))
  content = bytearray(index.read_bytes())
  content[-28] ^= 1  # of the content's hash
  index.write_bytes(content)
  with pytest.raises(InputError, match=r"index-\w+\.npy is missing or damaged; copy the folder"):
    tfds_folder.check_files(copy)


def test_a_folder_of_an_earlier_version_has_no_digests_of_its_indices(whole, tmp_path):
  copy = shutil.copytree(whole[2], tmp_path / "copy")
  report = json.loads((copy / "report.json").read_text())
  del report["indices"]
  (copy / "report.json").write_text(json.dumps(report))
  assert tfds_folder.check_files(copy)["indices"] == {}


def test_a_host_that_starts_again_in_the_last_step_of_another_changes_nothing(
  whole, tmp_path, monkeypatch
):
  source, options, out, report = whole
  again = tmp_path / "out"
  convert.convert(source, again, options, host=1, hosts=2)
  move, others = finalize._move, []

  def restarted() -> None:
    others.append(convert.convert(source, again, options, host=1, hosts=2))

  def moving(*arguments):
    if not others:
      thread = threading.Thread(target=restarted)
      others.append(thread)
      thread.start()
      thread.join(0.2)  # it would take moved files for lost ones, and convert them again
    move(*arguments)

  monkeypatch.setattr(finalize, "_move", moving)
  assert convert.convert(source, again, options, host=0, hosts=2) == report
  others[0].join()
  assert others[1] == report
  assert files(again) == files(out)


def test_finished_chunks_are_not_converted_again(whole, tmp_path):
  source, options, _, _ = whole
  again = tmp_path / "out"
  convert.convert(source, again, options, host=0, hosts=2)
  made = [p for p in (again / paths.WORKING).rglob("*") if p.is_file() and p.suffix != ".lock"]
  before = {p: p.stat().st_mtime_ns for p in made}
  convert.convert(source, again, options, host=0, hosts=2)
  assert {p: p.stat().st_mtime_ns for p in before} == before


DAMAGE = {
  "cut": lambda data: data[: len(data) // 2],
  "flipped": lambda data: data[: len(data) // 2] + b"\x7f" + data[len(data) // 2 + 1 :],
  "empty": lambda data: b"",
  "nested": lambda data: b"[" * 5000,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", ["*.npy", "??????.json", "*.bad_rows.jsonl", "*.array_record"])
def test_damaged_files_of_an_interrupted_conversion_are_made_again(
  whole, tmp_path, pattern, damage
):
  source, options, out, report = whole
  again = tmp_path / "out"
  convert.convert(source, again, options, host=0, hosts=2)
  for path in (again / paths.WORKING).glob(pattern):
    path.write_bytes(DAMAGE[damage](path.read_bytes()) or b"x" * (damage == "cut"))
  assert convert.convert(source, again, options) == report
  assert files(again) == files(out)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", ["*.array_record-*", "conversion/moves.json"])
@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_files_that_are_damaged_after_the_last_step_began_are_made_again(
  tmp_path, monkeypatch, pattern, damage, choice
):
  rows = [sets.pickapic_row(i % 5, ranking_id=i) for i in range(12)]
  report = run(tmp_path, rows, "whole", duplicates=choice)
  with monkeypatch.context() as patch:
    patch.setattr(finalize, "_write_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(tmp_path, rows, duplicates=choice)
  paths_ = list((tmp_path / "out").glob(pattern))
  assert paths_
  for path in paths_:
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
  assert run(tmp_path, rows, duplicates=choice) == report
  assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_folder_with_a_damaged_file_is_not_reported_as_done(whole, tmp_path):
  source, options, out, _ = whole
  copy = shutil.copytree(out, tmp_path / "out")
  (shard, *_) = copy.glob("*.array_record-*")
  shard.write_bytes(b"")
  with pytest.raises(InputError, match="has 0 bytes"):
    convert.convert(source, copy, options)


def test_a_conversion_beside_another_one_is_refused(whole, tmp_path):
  source, options, out, report = whole
  again = tmp_path / "out"

  def progress(items, total):
    del total
    with pytest.raises(InputError, match="another process is writing the conversion"):
      convert.convert(source, again, options)
    return items

  assert convert.convert(source, again, options, progress=progress) == report
  assert files(again) == files(out)


def test_a_refused_conversion_leaves_no_folder(tmp_path):
  with pytest.raises(InputError, match="row 0"):
    run(tmp_path, [sets.pickapic_row(0, jpg_0=b"x")], "parent/out")
  assert not (tmp_path / "parent").exists()


def test_a_tokenizer_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(InputError, match="holds no CLIP tokenizer"):
    run(tmp_path, [sets.pickapic_row(0)], tokenizer=str(tmp_path / "absent"))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", [b"im\xc8ge_1", b"im\\udcc8ge_1", b"\\u001b]0;owned"])
def test_a_key_that_is_no_text_is_a_bad_row(tmp_path, key):
  path = sets.custom(tmp_path / "source", [], "pairs.jsonl")
  good = b'{"prompt":"a","image_0":"0.png","image_1":"1.png","label_0":1}'
  path.write_bytes(good + b"\n" + good.replace(b"image_1", key) + b"\n")
  source = source_reader.find("custom", path)
  with pytest.raises(InputError, match=r"row 1: column 'image_1' is missing"):
    convert.convert(source, tmp_path / "out", Options())
  report = convert.convert(source, tmp_path / "out", Options(on_bad_row="skip"))
  assert (report["kept"], report["found"]["bad_rows"]) == (1, 1)
  assert "\x1b" not in (tmp_path / "out/report.html").read_text()


def test_a_table_whose_own_name_is_no_utf8_is_read(tmp_path):
  lines = ["prompt,image_0,image_1,label_0", "a,0.png,1.png,1"]
  path = sets.custom(tmp_path / "source", lines)
  path = path.rename(path.parent / os.fsdecode(b"p\xe9.csv"))
  convert.convert(source_reader.find("custom", path), tmp_path / "out", Options())
  assert [p.id for p in all_pairs(tmp_path / "out")] == ["p\\xe9.csv:0"]


def test_a_set_of_which_tables_are_missing_says_so(tmp_path):
  sets.pickapic(tmp_path / "in/train-00001-of-00003.parquet", [sets.pickapic_row(0)])
  report = convert.convert(
    source_reader.find("pickapic", tmp_path / "in"), tmp_path / "out", Options()
  )
  assert "only 1 of 3 tables are there" in reports.lines(report)


def test_columns_that_are_not_read_are_in_the_report(tmp_path):
  lines = ["prompt,image_0,image_1,label_0,wieght", "a,0.png,1.png,1,3"]
  source = source_reader.find("custom", sets.custom(tmp_path / "source", lines))
  report = convert.convert(source, tmp_path / "out", Options())
  assert report["columns_not_read"] == ["wieght"]
  assert "columns that are not read: wieght" in reports.lines(report)


def test_a_byte_order_mark_is_no_part_of_a_caption_of_a_table(tmp_path):
  row = {"prompt": "\ufeffa fox", "image_0": "0.png", "image_1": "1.png", "label_0": 1}
  path = sets.custom(tmp_path / "source", [json.dumps(row)], "pairs.jsonl")
  convert.convert(source_reader.find("custom", path), tmp_path / "out", Options())
  assert all_pairs(tmp_path / "out")[0].prompt == "a fox"


def test_seeds_and_scores_beside_a_label_are_in_the_record(tmp_path):
  lines = ["prompt,image_0,image_1,label_0,score_0,score_1,seed_0,seed_1"]
  lines += ["a,0.png,1.png,0.25,2.5,-1,7,4294967295", "b,0.png,1.png,1,,,,"]
  source = source_reader.find("custom", sets.custom(tmp_path / "source", lines))
  convert.convert(source, tmp_path / "out", Options())
  first, second = all_pairs(tmp_path / "out")
  assert (first.p0, first.score_0, first.score_1) == (0.25, 2.5, -1)
  assert (first.seed_0, first.seed_1) == (7, 2**32 - 1)
  assert (second.seed_0, second.score_1) == (None, None)


@pytest.mark.parametrize("stop_at", range(6))
def test_the_last_step_can_be_interrupted_anywhere_and_repeated(
  whole, tmp_path, monkeypatch, stop_at
):
  source, options, out, report = whole
  again, done = tmp_path / "out", iter(range(100))

  def stopping(*arguments, call):
    if next(done) == stop_at:
      raise KeyboardInterrupt
    return call(*arguments)

  with monkeypatch.context() as patch:
    for name in ("_move", "_write_bad_rows", "_write_metadata"):
      call = getattr(finalize, name)
      patch.setattr(finalize, name, lambda *a, call=call: stopping(*a, call=call))
    with pytest.raises(KeyboardInterrupt):
      convert.convert(source, again, options)
  assert convert.convert(source, again, options) == report
  assert files(again) == files(out)


def test_the_command_of_a_finished_conversion_only_reports(whole):
  source, options, out, report = whole
  before = files(out)
  assert convert.convert(source, out, options) == report
  assert files(out) == before


def test_another_option_needs_another_folder(whole):
  source, options, out, _ = whole
  with pytest.raises(InputError, match=r"options\.ties: 'soft' there, 'drop' here"):
    convert.convert(source, out, options._replace(ties="drop"))


def test_files_that_changed_since_the_start_are_refused(tmp_path):
  rows = [sets.pickapic_row(i) for i in range(8)]
  convert.convert(pickapic(tmp_path, rows), tmp_path / "out", Options(rows_per_shard=4), hosts=2)
  with pytest.raises(InputError, match=r"unchanged input(.|\n)*sha256\.train-0\.parquet: "):
    run(tmp_path, rows[:6])


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out/thesis.tex").write_text("x")
  with pytest.raises(InputError, match="holds no conversion"):
    run(tmp_path, [sets.pickapic_row(0)])
  assert files(tmp_path / "out") == {"thesis.tex": b"x"}


def test_an_empty_shard_is_not_written(tmp_path):
  rows = [sets.pickapic_row(i, **(TIE if i < 4 else {})) for i in range(8)]
  report = run(tmp_path, rows, ties="drop")
  assert list(report["files"]) == ["preference_pairs-train.array_record-00000-of-00001"]


def test_a_full_disk_is_an_error_and_leaves_no_incomplete_file(tmp_path):
  full = record_writer.RecordWriter(tmp_path / "b", tmp_path)
  full.write(np.random.default_rng(0).bytes(300_000))
  with full_disk(100_000), pytest.raises(OSError, match=r"File too large.*free space"):
    full.finish()
  full.discard()
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_where_heavy_columns_are_spooled(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "HEAVY_GROUP", 0)
  full = pathlib.Path("/dev/full")
  monkeypatch.setattr(parquet.tempfile, "TemporaryFile", lambda **_: full.open("r+b", buffering=0))
  with pytest.raises(OSError, match=r"No space left on device.*free space"):
    run(tmp_path, [sets.pickapic_row(0)])
  assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize(
  ("choices", "message"),
  [
    ({"ties": "maybe"}, "unknown choice for ties 'maybe'"),
    ({"rows_per_shard": 0}, "rows_per_shard must be"),
    ({"splits": {"train": 0.5}}, "sum to 0.5"),
    ({"score_temperature": float("nan")}, "score_temperature must be positive"),
  ],
)
def test_an_invalid_option_is_refused(tmp_path, choices, message):
  source = pickapic(tmp_path, [sets.pickapic_row(0)])
  with pytest.raises(InputError, match=message):
    convert.convert(source, tmp_path / "out", Options()._replace(**choices))


SETTINGS = [{"workers": 0}, {"workers": 10**8}, {"hosts": 0}, {"hosts": 10**9}]


@pytest.mark.parametrize("settings", [*SETTINGS, {"host": 2, "hosts": 2}, {"host": -1}])
def test_hosts_count_from_zero(tmp_path, settings):
  source = pickapic(tmp_path, [sets.pickapic_row(0)])
  with pytest.raises(InputError, match=r"hosts count from 0|workers must be from 1 to 4,096"):
    convert.convert(source, tmp_path / "out", Options(), **settings)
