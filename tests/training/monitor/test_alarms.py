"""Alarms: when they begin and end, in runs that deserve them, and runs that end by one."""

import json
import logging
import pathlib

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmpo_jax import interop
from dmpo_jax.errors import InputError, StoppedError, exit_status
from dmpo_jax.training import setup
from dmpo_jax.training.config import check, default
from dmpo_jax.training.export import export
from dmpo_jax.training.monitor.alarms import ADVICE, Alarms, AlarmStop
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.run import train
from dmpo_jax.training.stop import stopped_error
from tests.training.processes import Processes
from tests.training.rows import computed
from tests.training.tiny import pairs_config, smallest_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Folder of a random pipeline that denoises pixels."""
  folder = tmp_path_factory.mktemp("base") / "pipeline"
  interop.save_pipeline(folder, setup.load_pipeline(smallest_config(), ["the digit seven"]))
  return folder


def monitored(base, steps=24):
  """A config with an evaluation every four steps and checkpoints every two."""
  config = pairs_config(base)
  config.data.num_pairs, config.num_steps, config.ema_decay = 64, steps, 0.0
  config.checkpoint.keep = 20
  config.held_out.update({"every": 4, "split": "test", "pairs": 8, "bins": 2})
  config.health.spike_window = 5
  return config


def ruined(base, *stop):
  """The config with a rate that is 100 times too high, ended by the given alarms."""
  config = monitored(base)
  config.optimizer.learning_rate *= 100
  config.health.stop = stop
  return config


def begins_and_ends(workdir, name):
  """Steps at which the flag of an alarm goes up and down."""
  rows = read(workdir, "metrics" if name == "gradient_spikes" else "held_out")
  flags = {row["step"]: row[name] for row in rows}
  begins, ends, was_on = [], [], 0.0
  for step, is_on in flags.items():
    if is_on != was_on:
      (begins if is_on else ends).append(step)
    was_on = is_on
  return begins, ends


@pytest.fixture(scope="module")
def ruin(base, tmp_path_factory):
  """Work directory of the run at that rate, and its messages."""
  workdir, messages = tmp_path_factory.mktemp("ruin"), []
  handler = logging.Handler()
  handler.emit = lambda record: messages.append(record.getMessage())
  logger = logging.getLogger("dmpo_jax.training.monitor.alarms")
  logger.addHandler(handler)
  train(ruined(base), workdir, show_progress=False)
  logger.removeHandler(handler)
  return workdir, messages


@pytest.mark.parametrize("name", ADVICE)
def test_a_rate_100_times_too_high_begins_every_alarm_and_prints_its_ends_once(name, ruin):
  workdir, messages = ruin
  begins, ends = begins_and_ends(workdir, name)
  assert begins
  printed = [text for text in messages if text.startswith(f"alarm {name}, step ")]
  assert [int(text.split("step ")[1].split(":")[0]) for text in printed] == begins
  assert all(ADVICE[name] in text and "docs/monitoring.md" in text for text in printed)
  ended = [text for text in messages if text.endswith(f"alarm {name} has ended")]
  assert [int(text.split("step ")[1].split(":")[0]) for text in ended] == ends


def test_flags_and_values_of_alarms_are_in_tensorboard(ruin):
  events = EventAccumulator(str(ruin[0] / "tensorboard")).Reload()
  spikes = {event.step: event.value for event in events.Scalars("gradient_spikes")}
  assert spikes == {row["step"]: row["gradient_spikes"] for row in read(ruin[0])}
  for name in ("preferred_rises", "saturates", "drifts", "saturation", "drift"):
    values = [event.value for event in events.Scalars(f"held_out/{name}")]
    np.testing.assert_allclose(values, [r[name] for r in read(ruin[0], "held_out")], rtol=1e-6)


def stopped(config, workdir):
  """The message and the exit status of a run that an alarm ends."""
  with pytest.raises(StoppedError) as error:
    train(config, workdir, show_progress=False)
  return exit_status(error.value)


def state_of(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_an_alarm_ends_the_run_with_the_checkpoint_before_it_until_the_config_changes(
  base, ruin, tmp_path
):
  whole, workdir = ruin[0], tmp_path / "run"
  (first, *_), (spike, *_) = (
    begins_and_ends(whole, x)[0] for x in ("saturates", "gradient_spikes")
  )
  assert first < spike  # so that the run can go on from one to the other

  # By the held-out evaluation: the checkpoint of that step is not saved.
  status, message = stopped(ruined(base, "saturates"), workdir)
  assert status == 4
  assert f"alarm saturates ended the run at step {first}: " in message
  assert f"are those of step {first - 2}, the last checkpoint before it" in message
  assert ADVICE["saturates"] in message
  assert "take 'saturates' out of config.health.stop" in message
  assert export(workdir, tmp_path / "export", weights="last") == first - 2
  assert state_of(tmp_path / "export") == state_of(workdir / "pipeline")

  # The same command again: the same message, and nothing is computed.
  before = (workdir / "metrics" / "train-000000.jsonl").stat().st_mtime_ns
  assert stopped(ruined(base, "saturates"), workdir) == (status, message)
  assert (workdir / "metrics" / "train-000000.jsonl").stat().st_mtime_ns == before

  # Damaged results are written again.
  file = next((workdir / "pipeline").rglob("*.safetensors"))
  file.write_bytes(b"damaged")
  assert stopped(ruined(base, "saturates"), workdir) == (status, message)
  assert state_of(tmp_path / "export") == state_of(workdir / "pipeline")

  # Another alarm, in a train step: the run goes on, and its window reaches back over the resume.
  status, message = stopped(ruined(base, "gradient_spikes"), workdir)
  assert f"alarm gradient_spikes ended the run at step {spike}: the gradient norm is" in message
  assert f"are those of step {(spike - 1) // 2 * 2}," in message

  # No alarm ends it: it is the run that was never stopped, bit for bit.
  assert train(ruined(base), workdir, show_progress=False).steps == 24
  assert computed(workdir) == computed(whole)
  assert read(workdir, "held_out") == read(whole, "held_out")
  assert state_of(workdir / "pipeline") == state_of(whole / "pipeline")
  assert not (workdir / "stopped.json").exists()


@pytest.mark.slow
def test_a_run_that_learns_its_preferred_images_has_no_alarm(base, tmp_path):
  config = monitored(base, steps=32)
  config.loss = {"name": "dpo", "beta": 10.0, "sft_weight": 1.0}
  config.health.stop = tuple(ADVICE)
  assert train(config, tmp_path, show_progress=False).steps == 32
  assert all(begins_and_ends(tmp_path, name) == ([], []) for name in ADVICE)


@pytest.mark.slow
def test_all_processes_end_with_status_4_at_an_alarm_of_the_evaluation(tmp_path):
  arguments = ["--config.held_out.every=2", "--config.held_out.split=test"]
  arguments += ["--config.held_out.pairs=8", "--config.checkpoint.every=1"]
  arguments += ["--config.health.drift=0.0", '--config.health.stop=("drifts",)']
  start = {"count": 2, "devices": 2, "log": tmp_path / "log", "arguments": arguments}
  with Processes(tmp_path / "run", **start) as run:
    assert run.statuses() == [4, 4], run.output()
  assert "alarm drifts ended the run at step 2: errors of the policy" in run.output()
  assert export(tmp_path / "run", tmp_path / "exported") == 1


def alarms(*stop, **values):
  section = default().health
  section.update({"spike_window": 4, "spike": 3.0, **values})
  section.stop = stop
  return Alarms(section, is_first=True)


def test_a_spike_exceeds_the_median_of_a_full_window_and_lasts_as_long_as_the_window():
  norms = [9.0, 1.0, 1.0, 2.0, 2.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.1, 1.0]
  watch, flags = alarms(), []
  for step, norm in enumerate(norms, 1):
    flags.append(watch.after_step(step, {"gradient_norm": norm})["gradient_spikes"])
  assert flags == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1]


def test_gradients_that_vanish_have_no_spikes():
  watch = alarms()
  for step, norm in enumerate([0.0] * 10 + [1.0], 1):
    assert watch.after_step(step, {"gradient_norm": norm}) == {"gradient_spikes": 0.0}


def test_a_run_that_ends_before_its_first_checkpoint_says_so():
  stop = {"alarm": "drifts", "step": 3, "text": "errors of the policy differ", "health": {}}
  message = str(stopped_error(stop, 0, pathlib.Path("runs/a/pipeline")))
  assert "No checkpoint was due before it, so there is no result" in message
  assert "runs/a" not in message


def test_alarms_continue_from_the_json_of_a_checkpoint():
  whole, resumed = alarms("gradient_spikes"), alarms("gradient_spikes")
  for step in range(1, 6):
    whole.after_step(step, {"gradient_norm": float(step)})
  resumed.restore(json.loads(json.dumps(whole.state())))
  for watch in (whole, resumed):
    watch.check(5)
    watch.after_step(6, {"gradient_norm": 100.0})
    with pytest.raises(AlarmStop, match=r"the gradient norm is 100, the median .* 3\.5"):
      watch.check(6)
  resumed = alarms("gradient_spikes")
  resumed.restore(json.loads(json.dumps(whole.state())))
  with pytest.raises(AlarmStop, match="the gradient norm is 100"):
    resumed.check(7)


@pytest.mark.parametrize(
  ("stop", "message"),
  [
    (("drift",), "unknown alarm in config.health.stop 'drift'; did you mean 'drifts'"),
    (("drifts",), "'drifts', which the held-out evaluation measures; set config.held_out.every"),
  ],
)
def test_a_name_that_could_end_no_run_is_refused(stop, message):
  config = pairs_config("none")
  config.health.stop = stop
  with pytest.raises(InputError, match=message):
    check(config)


def test_saturation_cannot_end_a_run_whose_loss_has_no_gradient_factor(base, tmp_path):
  config = monitored(base)
  config.loss = {"name": "sft"}
  config.health.stop = ("saturates",)
  with pytest.raises(InputError, match="'saturates', and loss 'sft' has no gradient factor"):
    train(config, tmp_path, show_progress=False)
