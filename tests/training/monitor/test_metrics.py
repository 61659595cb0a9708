"""The metrics files of a run, timings, and W&B."""

import json
import struct
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.monitor.metrics import MetricsWriter, check_wandb, open_wandb, read
from dmpo_jax.training.monitor.throughput import TIMINGS, StepTimer
from tests.common.full_disk import full_disk


def _held_out_row(change: float) -> dict:
  return {"preferred_change": change, "bins": [{"from": 0, "to": 999, "preferred_change": change}]}


def test_records_after_the_checkpoint_and_an_incomplete_line_are_dropped_on_resume(tmp_path):
  lines = [json.dumps({"step": step, "loss": 0.5}) for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
  lines = [json.dumps({"step": step, **_held_out_row(0.5)}) for step in (1, 2, 3)]
  (tmp_path / "held_out.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
  writer = MetricsWriter(tmp_path, step=2)
  writer.write(3, {"loss": 0.25})
  writer.write_held_out(3, _held_out_row(0.125))
  writer.close()
  assert [(r["step"], r["loss"]) for r in read(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 0.25)]
  assert [record["step"] for record in read(tmp_path, "held_out")] == [1, 2, 3]


GOOD = [json.dumps({"step": step, "loss": 0.5}) for step in (1, 2, 3)]
BAD = [
  '{"step" 2, "loss": 0.5}',
  "",
  "[]",
  "3",
  "[" * 5000,
  '{"loss": 0.5}',
  '{"step": "2", "loss": 0.5}',
  '{"step": true, "loss": 0.5}',
  '{"step": 2, "loss": "0.5"}',
  '{"step": 2, "loss": null}',
  "\0" * 40,
  '{"step": 2, "loss": 0.5}{"step": 2, "loss": 0.5}',
]


@pytest.mark.parametrize("line", BAD)
def test_a_damaged_line_is_set_aside_with_a_warning_and_the_others_stay(tmp_path, caplog, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text("\n".join([GOOD[0], line, GOOD[2]]) + "\n")
  MetricsWriter(tmp_path, step=3).close()
  assert [record["step"] for record in read(tmp_path)] == [1, 3]
  assert (tmp_path / "metrics.damaged").read_text() == f"{line}\n"
  assert "metrics.jsonl is damaged: line(s) 2 are set aside in" in caplog.text
  assert path.read_text() == f"{GOOD[0]}\n{GOOD[2]}\n"


def test_a_damaged_tail_of_any_bytes_is_set_aside(tmp_path):
  tail = bytes(range(256)) + b"\n" + bytes(300) + b"\n"
  (tmp_path / "metrics.jsonl").write_bytes(f"{GOOD[0]}\n".encode() + tail)
  MetricsWriter(tmp_path, step=3).close()
  assert [record["step"] for record in read(tmp_path)] == [1]
  assert (tmp_path / "metrics.damaged").read_bytes() == tail


@pytest.mark.parametrize(
  "change", [{"bins": None}, {"bins": [3]}, {"bins": [{"from": 0}]}, {"preferred_change": "x"}]
)
def test_a_damaged_record_of_the_held_out_evaluation_is_set_aside(tmp_path, change):
  good = json.dumps({"step": 0, **_held_out_row(0.25)})
  bad = json.dumps({"step": 1, **_held_out_row(0.25), **change})
  (tmp_path / "held_out.jsonl").write_text(f"{good}\n{bad}\n")
  MetricsWriter(tmp_path, step=3).close()
  assert [record["step"] for record in read(tmp_path, "held_out")] == [0]
  assert (tmp_path / "held_out.damaged").read_text() == f"{bad}\n"


def test_a_reader_passes_over_damaged_lines_with_a_warning_and_changes_nothing(tmp_path, caplog):
  text = "\n".join([GOOD[0], *BAD]) + "\n"
  (tmp_path / "metrics.jsonl").write_text(text)
  assert [record["step"] for record in read(tmp_path)] == [1]
  assert "line(s) 2, 3, 4, 5, 6 and 7 more are passed over" in caplog.text
  assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_start_at_step_0_says_that_the_checkpoints_of_recorded_steps_are_gone(tmp_path, caplog):
  (tmp_path / "metrics.jsonl").write_text("\n".join(GOOD) + "\n")
  MetricsWriter(tmp_path, step=0).close()
  assert (
    "records 3 steps and no checkpoint of them is left: the run starts at step 0" in caplog.text
  )


@pytest.mark.parametrize("name", ["metrics", "held_out"])
def test_a_full_disk_names_the_file_of_the_records(tmp_path, name):
  writer = MetricsWriter(tmp_path, step=0)
  write = writer.write if name == "metrics" else writer.write_held_out
  part = "train" if name == "metrics" else name
  match = rf"cannot write \(File too large\); free space.*{part}-000000\.jsonl'"
  with full_disk(30), pytest.raises(OSError, match=match):
    write(1, _held_out_row(0.125) if name == "held_out" else {"loss": 0.123456789012345})
  writer.close()


@pytest.mark.parametrize("text", ["", "../other", "a b", "\xff", "x" * 65])
def test_a_damaged_id_of_the_wandb_run_is_refused(tmp_path, text):
  pytest.importorskip("wandb")
  (tmp_path / "wandb_id").write_text(text)
  with pytest.raises(InputError, match="wandb_id holds no id of a W&B run; remove it"):
    open_wandb("toys", tmp_path, {})


def test_wandb_is_needed_only_if_a_project_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
  check_wandb("")
  assert open_wandb("", tmp_path, {}) is None
  with pytest.raises(InputError, match=r"wandb is not installed.*dmpo-jax\[wandb\]"):
    check_wandb("a-project")


def _scan(file) -> list[dict]:
  """Records in a file of an offline run: after 7 bytes, entries of checksum, length, kind, bytes.

  The format is LevelDB's log; the records of these tests fit into its first block.
  """
  from wandb.proto import wandb_internal_pb2

  data, position, rows = file.read_bytes(), 7, []
  assert data[:4] == b":W&B"
  while position + 7 <= len(data):
    _, length, kind = struct.unpack("<IHB", data[position : position + 7])
    assert kind == 1, "a complete entry"
    if position + 7 + length > len(data):
      break  # still being written
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data[position + 7 : position + 7 + length])
    position += 7 + length
    if record.WhichOneof("record_type") == "history":
      items = record.history.item
      rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
  return rows


def test_wandb_receives_metrics_evaluations_and_images_under_one_run_id(monkeypatch, tmp_path):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  writer = MetricsWriter(tmp_path, step=0, wandb=open_wandb("toys", tmp_path, {"seed": 1}))
  writer.write(1, {"loss": 0.5})
  writer.write_held_out(1, _held_out_row(0.125))
  writer.write_image(1, "samples", np.zeros((4, 4, 3), np.uint8))
  writer.close()
  run_id = (tmp_path / "wandb_id").read_text().strip()
  (file,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
  deadline = time.monotonic() + 60  # a process of wandb writes the file
  while len(rows := _scan(file)) < 3 and time.monotonic() < deadline:
    time.sleep(0.1)
  assert [row["step"] for row in rows] == [1, 1, 1]
  assert rows[0]["loss"] == 0.5
  assert (
    rows[1]["held_out/preferred_change"] == rows[1]["held_out_t0-999/preferred_change"] == 0.125
  )
  assert rows[2]["samples/_type"] == "image-file"


def _timer(peak: float | None = None) -> StepTimer:
  return StepTimer(time.perf_counter(), batch_size=8, flops=10**9, devices=2, peak=peak)


def test_the_timer_measures_the_steps_since_the_last_record():
  timer = _timer(peak=1e12)
  timer.restart(10)
  time.sleep(0.05)
  timer.done()
  metrics = timer.metrics(12)
  assert set(metrics) == set(TIMINGS)
  assert 0.025 <= metrics["seconds_per_step"] < 0.5
  assert metrics["examples_per_second"] == pytest.approx(8 / metrics["seconds_per_step"])
  assert metrics["tflops_per_device"] == pytest.approx(
    metrics["examples_per_second"] * 1e9 / 2 / 1e12
  )
  assert metrics["mfu"] == pytest.approx(metrics["tflops_per_device"])  # of 1 TFLOP/s
  assert 0.05 <= metrics["seconds_to_first_step"] < 1
  assert "seconds_to_first_step" not in timer.metrics(13)


def test_without_a_known_peak_there_is_no_mfu():
  timer = _timer()
  timer.done()
  assert "mfu" not in timer.metrics(1)


class _Working:
  """An array that a device is still computing."""

  def is_ready(self) -> bool:
    return False


@pytest.mark.parametrize(("in_flight", "stalled"), [(jnp.zeros(2), True), (_Working(), False)])
def test_waiting_for_data_is_a_stall_only_if_the_devices_are_idle(in_flight, stalled):
  def slow():
    while True:
      time.sleep(0.02)
      yield None

  timer = _timer()
  batches = timer.time_batches(slow())
  timer.dispatched(in_flight)
  next(batches)
  timer.done()
  metrics = timer.metrics(1)
  assert (metrics["data_stall_seconds"] >= 0.02) == stalled
  assert (0.1 < metrics["data_stall_fraction"] <= 1) == stalled


def test_paused_time_is_not_counted():
  timer = _timer()
  with timer.paused():
    time.sleep(0.2)
  timer.done()
  assert timer.metrics(1)["seconds_per_step"] < 0.1


def test_records_lie_in_parts_that_are_full_or_written_whole_again(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "PART_RECORDS", 3)
  writer = MetricsWriter(tmp_path, step=0)
  for step in range(1, 6):
    writer.write(step, {"loss": 0.5})
  writer.close()
  names = sorted(path.name for path in (tmp_path / "metrics").iterdir())
  assert names == ["train-000000.jsonl", "train-000001.jsonl"]
  assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_resumed_run_goes_on_in_the_last_part_without_later_records(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "PART_RECORDS", 3)
  for first, last in ((0, 8), (4, 5), (2, 6)):
    writer = MetricsWriter(tmp_path, step=first)
    for step in range(first + 1, last + 1):
      writer.write(step, {"loss": float(first)})
    writer.close()
  assert [(record["step"], record["loss"]) for record in read(tmp_path)] == [
    *((step, 0.0) for step in (1, 2)),
    *((step, 2.0) for step in (3, 4, 5, 6)),
  ]


def test_nothing_of_a_flush_is_lost_when_the_process_dies(tmp_path):
  writer = MetricsWriter(tmp_path, step=0)
  for step in (1, 2, 3):
    writer.write(step, {"loss": 0.5})
  writer.flush()
  assert [record["step"] for record in read(tmp_path)] == [1, 2, 3]


def test_parts_follow_the_records_of_an_older_version(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("\n".join(GOOD) + "\n")
  writer = MetricsWriter(tmp_path, step=2)
  writer.write(3, {"loss": 0.25})
  writer.close()
  assert [record["step"] for record in read(tmp_path)] == [1, 2, 3]
  assert read(tmp_path)[-1]["loss"] == 0.25
