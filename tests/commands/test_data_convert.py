"""The command `dmpo-jax data convert`: one line, killed, at size, on real data."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmpo_jax.commands.data import convert as data_convert
from dmpo_jax.commands.main import main
from dmpo_jax.data import images, tfds_folder
from dmpo_jax.data.convert import options as convert_options
from dmpo_jax.data.convert import paths
from dmpo_jax.data.convert.sources import SOURCES
from tests.data import sets

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
EMOJI = pathlib.Path(os.environ.get("DMPO_JAX_EMOJI_DIR", ROOT.parent / "shared/data/emoji"))
REVISIONS = EMOJI / "revisions.parquet"

# Runs the command and prints the most memory that its process has had.
MEASURED = """
import pathlib, sys
from dmpo_jax.commands.main import main
status = main(sys.argv[1:])
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
print("peak", next(int(x.split()[1]) // 1024 for x in lines if x.startswith("VmHWM")))
sys.exit(status)
"""


def command(*arguments) -> list[str]:
  return [sys.executable, "-c", MEASURED, "data", "convert", *map(str, arguments)]


def files(folder: pathlib.Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_custom_pairs_are_one_command(tmp_path, capsys):
  lines = ["prompt,image_0,image_1,label_0", "a fox,0.png,1.png,1", "a cat,2.png,3.png,0.25"]
  table = sets.custom(tmp_path / "my", lines)
  assert main(["data", "convert", "custom", str(table), "--out", str(tmp_path / "out")]) == 0
  assert "kept 2 pairs: 2 in train (2 prompts)" in capsys.readouterr().out
  source = tfds_folder.PairSource(tmp_path / "out", "train")
  assert [source[i].p0 for i in range(2)] == [1, 0.25]


def test_the_former_name_of_custom_is_accepted(tmp_path):
  table = sets.custom(tmp_path, ["prompt,image_0,image_1,label_0", "a,0.png,1.png,1"])
  assert main(["data", "convert", "pairs", str(table), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
  ("former", "name"), [("--part=test", "--source-split"), ("--split-salt=x", "--split-seed")]
)
def test_a_renamed_option_is_an_error_with_the_new_name(capsys, former, name):
  with pytest.raises(SystemExit) as stop:
    main(["data", "convert", "hpdv2", "x", "--out", "y", former])
  assert stop.value.code == 2
  assert f"{former.split('=')[0]} is {name} now" in capsys.readouterr().err


def test_the_help_shows_custom_pairs_and_every_source(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["data", "convert", "--help"])
  assert stop.value.code == 0
  text = capsys.readouterr().out
  assert "dmpo-jax data convert custom my/pairs.csv --out data/mine" in text
  for kind in SOURCES:
    assert f"data convert {kind} " in text


def test_the_commands_defaults_are_those_of_a_conversion():
  parser = argparse.ArgumentParser()
  data_convert.add_arguments(parser)
  values = vars(parser.parse_args(["custom", "x", "--out=y"]))
  default = convert_options.Options()._asdict()
  values["splits"] = data_convert.read_splits(values["splits"])
  assert {name: values[name] for name in default} == default


def test_a_bad_row_is_one_message_and_status_two(tmp_path, capsys):
  table = sets.custom(tmp_path, ["prompt,image_0,image_1,label_0", "a,0.png,1.png,7"])
  assert main(["data", "convert", "custom", str(table), "--out", str(tmp_path / "out")]) == 2
  error = capsys.readouterr().err
  assert f"{table}, row 0: label_0 must lie in [0, 1], got 7.0" in error


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("train", "write train=0.9,test=0.1"),
    ("train=x", "write train=0.9,test=0.1"),
    ("train=0.5,train=0.5", "names 'train' twice"),
    ("train=0.2", "sum to 0.2"),
  ],
)
def test_invalid_splits_are_refused(tmp_path, capsys, text, message):
  table = sets.custom(tmp_path, ["prompt,image_0,image_1,label_0", "a,0.png,1.png,1"])
  arguments = ["data", "convert", "custom", str(table), "--out", str(tmp_path / "out")]
  assert main([*arguments, f"--splits={text}"]) == 2
  assert message in capsys.readouterr().err


def test_a_write_error_is_one_message_and_the_command_resumes(tmp_path, capsys):
  rows = [sets.pickapic_row(i, jpg_0=sets.encoded(i, size=(300, 300))) for i in range(4)]
  sets.pickapic(tmp_path / "in/train-0.parquet", rows, group=2)
  arguments = ["pickapic", tmp_path / "in", "--out", tmp_path / "out", "--workers=1"]
  limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
  line = command(*arguments, "--rows-per-shard=2")
  line[2] = limited + line[2]
  done = subprocess.run(line, capture_output=True, text=True)
  assert done.returncode == 1
  assert "free space, then run the same command again to resume" in done.stderr
  assert "Traceback" not in done.stderr
  assert not list((tmp_path / "out").rglob("*.tmp"))
  assert main(["data", "convert", *map(str, arguments), "--rows-per-shard=2"]) == 0
  assert "kept 4 pairs" in capsys.readouterr().out


def test_a_killed_conversion_resumes_and_writes_the_same_bytes(tmp_path, capsys):
  rows = [sets.pickapic_row(i, jpg_0=sets.encoded(i, size=(200, 200))) for i in range(240)]
  sets.pickapic(tmp_path / "in/train-0.parquet", rows, group=10)
  arguments = ["pickapic", tmp_path / "in", "--rows-per-shard=10", "--splits=train=0.7,test=0.3"]
  working = tmp_path / "killed" / paths.WORKING
  running = subprocess.Popen(
    command(*arguments, "--out", tmp_path / "killed", "--workers=2"), stderr=subprocess.DEVNULL
  )
  while len(list(working.glob("*.json"))) < 3:
    assert running.poll() is None
    time.sleep(0.005)
  running.send_signal(signal.SIGKILL)
  running.wait()
  time.sleep(0.5)  # workers end with their parent
  done = {p: p.stat().st_mtime_ns for p in working.glob("*.json")}
  assert 3 <= len(done) < 24
  for out in ("killed", "whole"):
    if out == "killed":
      assert (
        main(
          [
            "data",
            "convert",
            *map(str, arguments),
            f"--out={tmp_path / out}",
            "--host=1",
            "--hosts=24",
            "--workers=1",
          ]
        )
        == 0
      )
      assert {p: p.stat().st_mtime_ns for p in done} == done
    assert (
      main(["data", "convert", *map(str, arguments), f"--out={tmp_path / out}", "--workers=1"]) == 0
    )
  assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").is_file(), reason="memory is read in /proc"
)
@pytest.mark.slow
def test_memory_stays_bounded_however_large_the_file(tmp_path):
  # 300 MB in row groups of 75 MB: neither the file nor a row group's columns fit in what is allowed
  # beyond the memory that two rows take, two times a column of 37 MB and its copies.
  rng = np.random.default_rng(0)
  (tmp_path / "large").mkdir()
  with pq.ParquetWriter(tmp_path / "large/train-0.parquet", sets.PICKAPIC) as writer:
    for group in range(4):
      rows = [sets.pickapic_row(50 * group + i) for i in range(50)]
      for row in rows:
        for name in ("jpg_0", "jpg_1"):
          row[name] += rng.bytes(750_000)  # what follows a JPEG's end is not decoded
      writer.write_table(pa.Table.from_pylist(rows, sets.PICKAPIC))
  sets.pickapic(tmp_path / "small/train-0.parquet", rows[:2])
  peaks = {}
  for name in ("small", "large"):
    line = command("pickapic", tmp_path / name, "--out", tmp_path / f"{name}_out", "--workers=1")
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    peaks[name] = int(done.stdout.rsplit("peak", 1)[1])
  assert (tmp_path / "large/train-0.parquet").stat().st_size > 290e6
  assert peaks["large"] < 1000
  assert peaks["large"] - peaks["small"] < 150


@pytest.mark.skipif(not REVISIONS.is_file(), reason="the emoji revisions are not on this machine")
def test_emoji_revisions_come_through_whole(tmp_path):
  out = tmp_path / "out"
  arguments = ["pickapic", str(REVISIONS), f"--out={out}", "--splits=train=0.9,test=0.1"]
  assert main(["data", "convert", *arguments, "--workers=1"]) == 0
  rows = pq.read_table(REVISIONS).to_pylist()
  report = tfds_folder.read_report(out)
  assert report["kept"] == len(rows) == 2979
  assert report["found"]["ties"] == sum(r["label_0"] == 0.5 for r in rows)
  by_id = {f"{r['ranking_id']}:{r['image_0_uid']}:{r['image_1_uid']}": r for r in rows}
  prompts = {}
  for split in report["splits"]:
    source = tfds_folder.PairSource(out, split)
    for i in range(len(source)):
      pair = source[i]
      row = by_id.pop(pair.id)
      assert (pair.prompt, pair.p0) == (row["caption"], row["label_0"])
      assert prompts.setdefault(pair.prompt_id, split) == split
      if i % 100 == 0:
        np.testing.assert_array_equal(
          np.asarray(images.decode(pair.image_0)), np.asarray(images.decode(row["jpg_0"]))
        )
  assert not by_id
