"""The parts of a run's wall time, by a clock that the tests set."""

import json
import logging

import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.training import goodput
from dmpo_jax.training.goodput import Goodput


class Clock:
  """A clock that goes on only when it is told."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self) -> float:
    return self.now


@pytest.fixture
def clock():
  return Clock()


def _start(clock, folder, step, *, init=5.0) -> Goodput:
  """A start that has initialised for some seconds."""
  counts = Goodput(clock=clock, wall_clock=clock, period=None)
  clock.now += init
  counts.begin(folder, step)
  return counts


def _steps(clock, counts, first, n, *, seconds=2.0):
  for step in range(first + 1, first + n + 1):
    with counts.part("steps"):
      clock.now += seconds
    counts.done(step)


def _save(clock, counts, step, *, seconds=1.0):
  with counts.part("steps"), counts.part("save"):
    clock.now += seconds
  counts.saved(step)


def _whole(record) -> dict[str, float]:
  """The parts that are not zero, after a check that all add up to the wall time."""
  assert sum(record["seconds"].values()) == record["wall_seconds"]
  assert record["wall_seconds"] == record["updated"] - record["first_start"]
  return {part: value for part, value in record["seconds"].items() if value}


def test_a_part_inside_another_counts_alone_and_all_add_up(clock, tmp_path):
  counts = _start(clock, tmp_path, 0)
  with counts.part("compile"):
    clock.now += 7
  with counts.part("steps"):
    clock.now += 20
    counts.move(3, "data")  # the last three seconds were a stall
    with counts.part("evaluation"):
      clock.now += 4
    clock.now += 1
  counts.close()
  record = goodput.read(tmp_path)
  assert _whole(record) == {"init": 5, "compile": 7, "steps": 18, "data": 3, "evaluation": 4}
  assert record["goodput"] == 18 / 37


def test_killed_starts_lose_what_they_did_after_the_checkpoint(clock, tmp_path):
  first = _start(clock, tmp_path, 0)
  _steps(clock, first, 0, 4)
  _save(clock, first, 4)
  _steps(clock, first, 4, 3)
  first._write()  # the last record of a start that is killed six seconds later
  clock.now += 6 + 100
  second = _start(clock, tmp_path, 4, init=8)
  with second.part("restore"):
    clock.now += 2
  _steps(clock, second, 4, 2)
  second.close()
  record = goodput.read(tmp_path)
  assert _whole(record) == {
    "steps": 8 + 4,
    "init": 5 + 8,
    "restore": 2,
    "save": 1,
    "lost": 6,
    "down": 106,
  }
  assert (record["starts"], record["step"], record["lost_steps"]) == (2, 6, 3)


def test_a_start_that_resumes_two_checkpoints_back_loses_the_starts_between(clock, tmp_path):
  first = _start(clock, tmp_path, 0)
  for step in (2, 4):
    _steps(clock, first, step - 2, 2)
    _save(clock, first, step)
  first.close()
  second = _start(clock, tmp_path, 4)
  _steps(clock, second, 4, 1)
  second.close()
  third = _start(clock, tmp_path, 2)  # somebody moved checkpoint 4 away
  third.close()
  record = goodput.read(tmp_path)
  assert _whole(record) == {"steps": 4, "save": 1, "init": 15, "lost": 4 + 1 + 2}
  assert record["lost_steps"] == 3
  assert list(record["saved"]) == ["0", "2"]


def test_a_start_killed_before_its_first_checkpoint_loses_all_its_steps(clock, tmp_path):
  first = _start(clock, tmp_path, 0)
  _steps(clock, first, 0, 3)
  first.close()
  _start(clock, tmp_path, 0).close()
  assert _whole(goodput.read(tmp_path)) == {"init": 10, "lost": 6}


def test_a_host_whose_clock_is_behind_makes_no_negative_time(clock, tmp_path):
  _start(clock, tmp_path, 0).close()
  clock.now -= 500
  _start(clock, tmp_path, 0).close()
  record = goodput.read(tmp_path)
  assert record["seconds"]["down"] == 0
  assert sum(record["seconds"].values()) == record["wall_seconds"] == 10


def test_the_metrics_are_the_fractions_of_the_wall_time(clock, tmp_path):
  counts = _start(clock, tmp_path, 0)
  _steps(clock, counts, 0, 5, seconds=3.0)
  metrics = counts.metrics()
  assert metrics["goodput"] == metrics["wall_time/steps"] == 0.75
  assert sum(value for name, value in metrics.items() if name != "goodput") == 1


def test_a_record_in_words_names_the_parts_by_their_share(clock, tmp_path):
  first = _start(clock, tmp_path, 0, init=30)
  _steps(clock, first, 0, 15, seconds=4.0)
  first.close()
  clock.now += 10
  second = _start(clock, tmp_path, 0, init=20)
  _steps(clock, second, 0, 12, seconds=5.0)
  assert goodput.text(second.record()) == (
    "33.3% of 3.0 min in 2 starts: steps 33.3%, initialisation 27.8%, lost work 33.3% (15 steps), "
    "between starts 5.6%"
  )


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 2}', "[]"])
def test_a_damaged_record_is_a_warning_and_the_run_counts_anew(content, clock, tmp_path, caplog):
  (tmp_path / goodput.FILE).write_text(content)
  with pytest.raises(InputError, match=r"goodput\.json"):
    goodput.read(tmp_path)
  with caplog.at_level(logging.WARNING):
    _start(clock, tmp_path, 8).close()
  assert "remove it: the run counts from its next start" in caplog.text
  record = goodput.read(tmp_path)
  assert (record["starts"], list(record["saved"])) == (1, ["8"])


def test_a_negative_or_missing_count_is_refused(clock, tmp_path):
  _start(clock, tmp_path, 0).close()
  record = goodput.read(tmp_path)
  record["seconds"]["steps"] = -1.0
  (tmp_path / goodput.FILE).write_text(json.dumps(record))
  with pytest.raises(InputError, match=r"-1.0 is no count of seconds or steps; remove it"):
    goodput.read(tmp_path)


def test_a_write_that_fails_warns_once_and_ends_no_run(clock, tmp_path, caplog):
  counts = Goodput(clock=clock, wall_clock=clock, period=None)
  counts.begin(tmp_path / "gone", 0)
  counts.close()
  assert caplog.text.count("the run goes on without this record") == 1


def test_the_file_is_written_while_the_main_thread_is_busy(tmp_path):
  counts = Goodput(period=0.01)
  counts.begin(tmp_path, 0)
  before = goodput.read(tmp_path)["updated"]
  with counts.part("compile"):
    while goodput.read(tmp_path)["seconds"]["compile"] == 0:
      pass
  counts.close()
  assert goodput.read(tmp_path)["updated"] > before
