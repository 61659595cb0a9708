"""Position and versions that a resumed run must have in common with the run that it continues."""

import json
import logging
import platform
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

import dmpo_jax
from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import ABSENT, differences
from dmpo_jax.errors import InputError
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.run_directory import RUN_FILE, VERSIONS, read_run
from dmpo_jax.training.step import State

LOGGER = logging.getLogger(__name__)

# Packages whose versions change the last digits of a run, or its order of random numbers.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def position(config: ConfigDict, base_weights: str, step: int) -> dict[str, Any]:
  """The position in the data after `step` batches, and the base weights that the reference is.

  The order of the data is a function of the seed alone, whatever the number of processes.

  Args:
    config: A checked config.
    base_weights: Checksum of the parameters that the run starts from, from run.json.
    step: Steps done.

  Returns:
    JSON values, which each checkpoint holds.
  """
  return {
    "next_batch": step,
    "batch_size": config.batch_size,
    "seed": config.seed,
    "base_weights": base_weights,
  }


def to_saved(state: State) -> dict[str, Any]:
  """The fields of a state in a checkpoint; `reference` is there only if it moves."""
  fields = state._asdict()
  if state.reference is None:  # as in checkpoints of a time when no reference moved
    del fields["reference"]
  return fields


def restore(checkpoints: Checkpoints, step: int, like: State, expected: dict[str, Any]) -> State:
  """The state of a checkpoint; see `restore_with_alarms`."""
  return restore_with_alarms(checkpoints, step, like, expected)[0]


def restore_with_alarms(
  checkpoints: Checkpoints, step: int, like: State, expected: dict[str, Any]
) -> tuple[State, dict[str, Any]]:
  """The state of a checkpoint, and that of the run's alarms ({} in one of an older version).

  Args:
    checkpoints: The run's checkpoints.
    step: Steps done.
    like: Shapes, dtypes and shardings of the state.
    expected: The `position` that the checkpoint must have.

  Raises:
    InputError: The checkpoint cannot be read, has another position in the data, or is that of
      another step.
  """
  fields, saved = checkpoints.restore(step, to_saved(like))
  state, alarms = State(**fields), saved.pop("alarms", {})
  if saved != expected:
    raise InputError(
      f"the checkpoint of step {step} has the position {saved} in the data, this run would have "
      f"{expected}: it belongs to a different run; use another work directory"
    )
  if int(state.step) != step:
    raise InputError(
      f"the checkpoint in {checkpoints.directory / str(step)} is that of step {int(state.step)}; "
      "give the folder its name back"
    )
  return state, alarms


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that compute a run."""
  packages = {name: metadata.version(name) for name in PACKAGES}
  return {"dmpo_jax": dmpo_jax.__version__, "python": platform.python_version(), **packages}


def record_versions(workdir: paths.Path, step: int) -> None:
  """Records the versions in run.json, and warns if the run has been at work with others.

  run.json lists them for the first start and for each start with others, with the step.

  Args:
    workdir: Work directory with a run.json.
    step: Step at which the run starts or resumes.
  """
  content, now = read_run(workdir), versions()
  history = content.get(VERSIONS)
  history = [x for x in history if isinstance(x, dict)] if isinstance(history, list) else []
  before = {k: v for k, v in history[-1].items() if k != "step"} if history else {}
  different = differences(before, now)
  if history and not different:
    return
  if step:
    LOGGER.warning(
      "the run resumes with other versions than it had (%s): from here on it equals an "
      "uninterrupted run up to rounding, not bit for bit",
      ", ".join(
        f"{name} {'unknown' if old is ABSENT else old}, now {'none' if new is ABSENT else new}"
        for name, (old, new) in different.items()
      ),
    )
  content[VERSIONS] = [*history, {"step": step, **now}]
  write_atomically(workdir / RUN_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")
