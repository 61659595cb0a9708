"""The files of a run: rows, their timings, and W&B where it is asked for."""

import json
import struct
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.training.monitor.metrics import MetricsWriter, check_wandb, open_wandb, read
from dmpo_jax.training.monitor.throughput import TIMINGS, Clock


def _held_out_row(change: float) -> dict:
  return {"winner_change": change, "bins": [{"from": 0, "to": 999, "winner_change": change}]}


def test_rows_after_the_checkpoint_and_a_line_cut_short_are_dropped_on_resume(tmp_path):
  lines = [json.dumps({"step": step, "loss": 0.5}) for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
  (tmp_path / "held_out.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
  writer = MetricsWriter(tmp_path, step=2)
  writer.write(3, {"loss": 0.25})
  writer.write_held_out(3, _held_out_row(0.125))
  writer.close()
  assert [(row["step"], row["loss"]) for row in read(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 0.25)]
  assert [row["step"] for row in read(tmp_path, "held_out")] == [1, 2, 3]


def test_wandb_is_asked_for_only_where_a_project_is_named_and_then_must_be_installed(
  monkeypatch, tmp_path
):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
  check_wandb("")
  assert open_wandb("", tmp_path, {}) is None
  with pytest.raises(InputError, match=r"wandb is not installed.*dmpo-jax\[wandb\]"):
    check_wandb("a-project")


def _scan(file) -> list[dict]:
  """The rows in a file of an offline run: after 7 bytes, records of checksum, length, kind, bytes.

  The format is LevelDB's log; what is written here fits into its first block.
  """
  from wandb.proto import wandb_internal_pb2

  data, place, rows = file.read_bytes(), 7, []
  assert data[:4] == b":W&B"
  while place + 7 <= len(data):
    _, length, kind = struct.unpack("<IHB", data[place : place + 7])
    assert kind == 1, "a whole record"
    if place + 7 + length > len(data):
      break  # still being written
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data[place + 7 : place + 7 + length])
    place += 7 + length
    if record.WhichOneof("record_type") == "history":
      items = record.history.item
      rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
  return rows


def test_wandb_gets_rows_held_out_errors_and_pictures_with_their_step_and_keeps_its_run(
  monkeypatch, tmp_path
):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  writer = MetricsWriter(tmp_path, step=0, wandb=open_wandb("toys", tmp_path, {"seed": 1}))
  writer.write(1, {"loss": 0.5})
  writer.write_held_out(1, _held_out_row(0.125))
  writer.write_image(1, "samples", np.zeros((4, 4, 3), np.uint8))
  writer.close()
  identity = (tmp_path / "wandb_id").read_text().strip()
  (file,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb")
  until = time.monotonic() + 60  # its own process writes the file, on a busy machine somewhat later
  while len(rows := _scan(file)) < 3 and time.monotonic() < until:
    time.sleep(0.1)
  assert [row["step"] for row in rows] == [1, 1, 1]
  assert rows[0]["loss"] == 0.5
  assert rows[1]["held_out/winner_change"] == rows[1]["held_out_t0-999/winner_change"] == 0.125
  assert rows[2]["samples/_type"] == "image-file"


def _clock(peak: float | None = None) -> Clock:
  return Clock(time.perf_counter(), batch_size=8, flops=10**9, devices=2, peak=peak)


def test_a_lap_says_how_fast_the_steps_since_the_last_one_were():
  clock = _clock(peak=1e12)
  clock.restart(10)
  time.sleep(0.05)
  clock.done()
  lap = clock.lap(12)
  assert set(lap) == set(TIMINGS)
  assert 0.025 <= lap["seconds_per_step"] < 0.5
  assert lap["examples_per_second"] == pytest.approx(8 / lap["seconds_per_step"])
  assert lap["tflops_per_device"] == pytest.approx(lap["examples_per_second"] * 1e9 / 2 / 1e12)
  assert lap["mfu"] == pytest.approx(lap["tflops_per_device"])  # of 1 TFLOP/s
  assert 0.05 <= lap["seconds_to_first_step"] < 1
  assert "seconds_to_first_step" not in clock.lap(13)


def test_devices_whose_peak_is_not_known_have_no_mfu():
  clock = _clock()
  clock.done()
  assert "mfu" not in clock.lap(1)


class _Working:
  """An array that a device is still at work on."""

  def is_ready(self) -> bool:
    return False


@pytest.mark.parametrize(("in_flight", "stalled"), [(jnp.zeros(2), True), (_Working(), False)])
def test_waiting_for_data_is_a_stall_only_where_the_devices_have_run_dry(in_flight, stalled):
  def slow():
    while True:
      time.sleep(0.02)
      yield None

  clock = _clock()
  batches = clock.waiting(slow())
  clock.sent(in_flight)
  next(batches)
  clock.done()
  lap = clock.lap(1)
  assert (lap["data_stall_seconds"] >= 0.02) == stalled
  assert (0.1 < lap["data_stall_fraction"] <= 1) == stalled


def test_what_a_run_does_beside_its_steps_is_not_their_time():
  clock = _clock()
  with clock.paused():
    time.sleep(0.2)
  clock.done()
  assert clock.lap(1)["seconds_per_step"] < 0.1
