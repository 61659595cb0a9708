"""The end of a run by an alarm of config.health.stop, which its work directory remembers."""

import json
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax.common import files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import StoppedError
from dmpo_jax.training.monitor.alarms import ADVICE, AlarmStop

STOP_FILE = "stopped.json"
FIELDS = {"alarm": str, "step": int, "text": str, "health": dict}


def stop_record(config: ConfigDict, alarm: AlarmStop) -> dict[str, Any]:
  """An alarm that ends a run, and config.health of that run, in JSON."""
  return {
    "alarm": alarm.name,
    "step": alarm.step,
    "text": alarm.text,
    "health": _settings(config),
  }


def write_stop(workdir: paths.Path, stop: dict[str, Any]) -> None:
  """Records in a work directory that an alarm has ended the run; see `stop_record`."""
  write_atomically(workdir / STOP_FILE, json.dumps(stop, indent=1) + "\n")


def read_stop(workdir: paths.Path, config: ConfigDict) -> dict[str, Any] | None:
  """The alarm that has ended a run, where config.health still says so.

  Args:
    workdir: Work directory.
    config: A checked config.

  Returns:
    Its `stop_record`; None without an alarm, or if config.health has changed since: the run
    then goes on from its last checkpoint.

  Raises:
    InputError: The file is damaged.
  """
  path = workdir / STOP_FILE
  if not path.exists():
    return None
  advice = "remove it to go on from the last checkpoint"
  content = files.read_json(path, advice=advice)
  with files.reading(path, "record of an alarm", advice=advice):
    if not all(isinstance(content[key], kind) for key, kind in FIELDS.items()):
      raise ValueError("a field has another type")
    return content if content["health"] == _settings(config) else None


def remove_stop(workdir: paths.Path) -> None:
  """Forgets the alarm that has ended a run, because the run goes on."""
  (workdir / STOP_FILE).unlink(missing_ok=True)


def stopped_error(stop: dict[str, Any], checkpoint: int, pipeline: paths.Path) -> StoppedError:
  """The error that ends a run by an alarm.

  Args:
    stop: From `stop_record`.
    checkpoint: Step of the last checkpoint before the alarm; 0: there is none.
    pipeline: Where the results of that checkpoint are.
  """
  name = stop["alarm"]
  result = (
    f"The results in {pipeline} are those of step {checkpoint}, the last checkpoint before it"
    if checkpoint
    else "No checkpoint was due before it, so there is no result; lower config.checkpoint.every"
  )
  return StoppedError(
    f"config.health.stop: alarm {name} ended the run at step {stop['step']}: {stop['text']}.\n"
    f"{result}.\n"
    f"{ADVICE.get(name, 'Change the settings')}, in a new work directory. Or take {name!r} out of "
    "config.health.stop, or change its threshold in config.health, and give the command again: the "
    "run goes on from that checkpoint"
  )


def _settings(config: ConfigDict) -> dict[str, Any]:
  """config.health as JSON reads it: lists in place of tuples."""
  section = config.health.to_dict()
  return {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
