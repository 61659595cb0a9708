"""The rows of a conversion: ties, unlabelled, long, repeated and bad ones, kept or left out."""

import json
import re

import pytest

from dmpo_jax.data import record_writer
from dmpo_jax.data.convert import chunk_index, convert, paths, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from tests.data import sets
from tests.data.convert.conversions import TIE, all_pairs, bad_rows, files, run


def test_ties_are_kept_as_one_half_or_dropped(tmp_path):
  rows = [sets.pickapic_row(0), sets.pickapic_row(1, **TIE)]
  report = run(tmp_path, rows)
  assert [p.p0 for p in all_pairs(tmp_path / "out")] == [1, 0.5]
  assert (report["found"]["ties"], report["kept"]) == (1, 2)
  report = run(tmp_path, rows, "dropped", ties="drop")
  assert (report["found"]["ties"], report["dropped"]["dropped_ties"], report["kept"]) == (1, 1, 1)


def test_unlabelled_rows_stop_or_are_dropped_and_the_conversion_resumes(tmp_path):
  rows = [sets.pickapic_row(0), sets.pickapic_row(1, has_label=False)]
  with pytest.raises(InputError, match=r"train-0.parquet, row 1: .*--unlabelled=drop"):
    run(tmp_path, rows)
  report = run(tmp_path, rows, unlabelled="drop")
  assert (report["found"]["unlabelled"], report["kept"]) == (1, 1)


@pytest.mark.parametrize(("choice", "kept"), [("keep", 2), ("drop", 1)])
def test_long_captions_are_counted_and_kept_or_dropped(tmp_path, choice, kept):
  rows = [sets.pickapic_row(0), sets.pickapic_row(1, caption="word " * 76)]
  report = run(tmp_path, rows, long_captions=choice)
  assert (report["found"]["long_captions"], report["kept"]) == (1, kept)


@pytest.mark.parametrize(("choice", "kept"), [("keep", 2), ("drop", 1)])
def test_pairs_of_two_sizes_are_counted_and_kept_or_dropped(tmp_path, choice, kept):
  rows = [sets.pickapic_row(0), sets.pickapic_row(1, jpg_1=sets.encoded(size=(20, 30)))]
  report = run(tmp_path, rows, size_mismatch=choice)
  assert (report["found"]["size_mismatch"], report["kept"]) == (1, kept)
  assert report["sizes"].get("30x20", 0) == kept - 1


@pytest.mark.parametrize(("choice", "kept"), [("keep", 6), ("drop", 5)])
def test_the_same_label_under_another_id_is_a_duplicate(tmp_path, choice, kept):
  rows = [sets.pickapic_row(i) for i in range(6)]
  rows[5] = rows[0] | {"ranking_id": 99}
  report = run(tmp_path, rows, duplicates=choice)
  assert (report["found"]["duplicates"], report["kept"]) == (1, kept)
  assert len(all_pairs(tmp_path / "out")) == kept


def test_the_same_label_of_another_annotator_is_no_duplicate(tmp_path):
  rows = [sets.pickapic_row(0), sets.pickapic_row(0, ranking_id=9, user_id=8)]
  assert run(tmp_path, rows, duplicates="drop")["kept"] == 2


def test_the_error_of_a_repeated_id_names_both_rows(tmp_path):
  rows = [sets.pickapic_row(i) for i in range(6)]
  rows[5] |= {"ranking_id": 1, "image_0_uid": "1a", "image_1_uid": "1b"}
  with pytest.raises(InputError, match=r"row 5: its id occurred before, in train-0.parquet, row 1"):
    run(tmp_path, rows)
  report = run(tmp_path, rows, on_bad_row="skip")
  assert (report["found"]["repeated_ids"], report["kept"]) == (1, 5)
  assert [p.id for p in all_pairs(tmp_path / "out")] == [f"{i}:{i}a:{i}b" for i in range(5)]
  bad = json.loads((tmp_path / "out/bad_rows.jsonl").read_text())
  assert bad == {"file": "train-0.parquet", "row": 5, "reason": "its id occurred before"}


def test_duplicates_are_found_slice_by_slice_as_at_once(tmp_path, monkeypatch):
  rows = [sets.pickapic_row(i % 5, ranking_id=i) for i in range(12)]
  report = run(tmp_path, rows, duplicates="drop")
  monkeypatch.setattr(chunk_index, "PAIRS_AT_A_TIME", 2)
  assert run(tmp_path, rows, "sliced", duplicates="drop") == report
  assert report["found"]["duplicates"] == 7
  assert files(tmp_path / "out") == files(tmp_path / "sliced")


BAD = {
  "a truncated JPEG": ({"jpg_0": sets.encoded(size=(64, 64), kind="JPEG")[:900]}, "decoded"),
  "a decompression bomb": ({"jpg_1": sets.png(60_000, 60_000)}, "60000x60000|too large"),
  "no bytes": ({"jpg_0": None}, "must hold an image's bytes, got NoneType"),
  "one pixel": ({"jpg_1": sets.encoded(size=(1, 1))}, "1x1 pixels"),
  "no image": ({"jpg_1": b"not an image"}, "not an image"),
  "NaN": ({"label_0": float("nan")}, "finite"),
  "out of range": ({"label_0": -0.5}, "must lie in"),
  "empty caption": ({"caption": " "}, "caption is empty"),
  "huge caption": ({"caption": "x" * 20_001}, "20001 characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_with_file_row_and_reason(tmp_path, name):
  changes, message = BAD[name]
  rows = [sets.pickapic_row(0), sets.pickapic_row(1, **changes)]
  with pytest.raises(InputError, match=f"train-0.parquet, row 1: .*{message}"):
    run(tmp_path, rows)
  assert not list((tmp_path / "out").rglob("*.tmp"))


def test_bad_rows_are_skipped_counted_and_listed_when_asked(tmp_path):
  rows = [sets.pickapic_row(0)]
  rows += [sets.pickapic_row(i, **BAD[name][0]) for i, name in enumerate(BAD, start=1)]
  report = run(tmp_path, rows, on_bad_row="skip")
  assert report["kept"] == 1
  assert (report["found"]["undecodable"], report["found"]["bad_rows"]) == (4, 5)
  listed = bad_rows(tmp_path / "out")
  assert [b["row"] for b in listed] == list(range(1, 10))
  for b, (_, message) in zip(listed, BAD.values(), strict=True):
    assert re.search(message, b["reason"])


def test_bad_rows_of_a_custom_table_are_skipped_and_listed(tmp_path):
  sets.save(tmp_path / "secret.png")
  path = sets.custom(tmp_path / "source", ["id,prompt,image_0,image_1,label_0"])
  lines = ["a,x,0.png,1.png,1", "b,x,0.png,../secret.png,1", "c,für,0.png,1.png,1"]
  lines += ["a,x,2.png,3.png,0", "d,x,0.png,absent.png,1", "e,x,0.png,1.png,7", "f,,0.png,1.png,1"]
  path.write_bytes(path.read_bytes() + "\n".join(lines).encode("latin-1") + b"\n")
  source = source_reader.find("custom", path)
  report = convert.convert(source, tmp_path / "out", Options(on_bad_row="skip"))
  assert (report["kept"], report["found"]["repeated_ids"]) == (1, 1)
  assert [p.id for p in all_pairs(tmp_path / "out")] == ["a"]
  skipped = {b["row"]: b["reason"] for b in bad_rows(tmp_path / "out")}
  reasons = ["leaves the folder", "not valid UTF-8", "id occurred before", "no file 'absent.png'"]
  reasons += ["must lie in", "caption is empty"]
  assert sorted(skipped) == list(range(1, 7))
  for row, reason in enumerate(reasons, start=1):
    assert reason in skipped[row]


def test_what_was_written_before_a_bad_row_stays_and_is_valid(tmp_path):
  rows = [sets.pickapic_row(i) for i in range(8)]
  rows[6]["jpg_0"] = b"broken"
  with pytest.raises(InputError, match="row 6"):
    run(tmp_path, rows)
  shard = paths.shard(tmp_path / "out" / paths.WORKING, 0, "train")
  assert record_writer.count_records(shard) == 4
  assert run(tmp_path, rows, on_bad_row="skip")["kept"] == 7


def test_nothing_left_is_an_error(tmp_path):
  with pytest.raises(InputError, match="no pair is left of 1 rows"):
    run(tmp_path, [sets.pickapic_row(0, **TIE)], ties="drop")


def test_a_ranking_with_one_bad_image_is_a_bad_row_as_a_whole(tmp_path):
  sets.imagereward(tmp_path / "source")
  (tmp_path / "source/2.webp").write_bytes(b"broken")
  source = source_reader.find("imagerewarddb", tmp_path / "source", split="test")
  with pytest.raises(InputError, match=r"test.json, row 0: '2.webp': not an image"):
    convert.convert(source, tmp_path / "out", Options())


def test_a_path_that_escapes_is_a_bad_row(tmp_path):
  sets.save(tmp_path / "secret.png")
  lines = ["prompt,image_0,image_1,label_0", "a,0.png,../secret.png,1"]
  source = source_reader.find("custom", sets.custom(tmp_path / "source", lines))
  with pytest.raises(InputError, match=r"pairs.csv, row 0: .*leaves the folder"):
    convert.convert(source, tmp_path / "out", Options())


def test_a_caption_that_is_not_utf8_is_a_bad_row(tmp_path):
  path = sets.custom(tmp_path / "source", ["prompt,image_0,image_1,label_0"])
  path.write_bytes(path.read_bytes() + "a,0.png,1.png,1\nfür,0.png,1.png,1\n".encode("latin-1"))
  with pytest.raises(InputError, match=r"pairs.csv, row 1: prompt is not valid UTF-8"):
    convert.convert(source_reader.find("custom", path), tmp_path / "out", Options())


def test_a_condition_image_is_kept(tmp_path):
  lines = ["prompt,image_0,image_1,label_0,condition", "a,0.png,1.png,1,2.png"]
  source = source_reader.find("custom", sets.custom(tmp_path / "source", lines))
  convert.convert(source, tmp_path / "out", Options())
  assert all_pairs(tmp_path / "out")[0].condition == sets.encoded(2)
