"""Held-out evaluation of a run: its pairs, its records and its figure; see `held_out_errors`."""

import importlib.util
import inspect
import json
import logging
from typing import Any

from ml_collections import ConfigDict

from dmpo_jax import data
from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.parallel import sharding
from dmpo_jax.training import setup
from dmpo_jax.training.device_batches import DeviceBatches
from dmpo_jax.training.monitor import held_out_errors, held_out_plot
from dmpo_jax.training.monitor.metrics import MetricsWriter, read
from dmpo_jax.training.monitor.monitored_run import MonitoredRun
from dmpo_jax.training.objective import Params

LOGGER = logging.getLogger(__name__)


def held_out_config(config: ConfigDict) -> ConfigDict:
  """Returns the config of a run with its held-out examples in place of its training examples.

  Args:
    config: A checked config.

  Returns:
    A copy. `data` is config.held_out.data or, if that has no name, config.data with the split
    config.held_out.split, center crops, no flips and no ties, as far as the data set has these
    options. `batch_size` is that of the evaluation.

  Raises:
    InputError: The data set has no splits, or the pairs are not a multiple of the batch size.
  """
  section = config.held_out.data.to_dict()
  if not section["name"]:
    section = config.data.to_dict()
    options = inspect.signature(data.DATASETS[section["name"]]).parameters
    if "split" not in options:
      raise InputError(
        f"config.held_out.every is {config.held_out.every}, and data set {section['name']!r} has "
        "no splits: name held-out examples by config.held_out.data"
      )
    section["split"] = config.held_out.split
    # A deterministic evaluation; a tie has no preferred image.
    fixed = {"crop": "center", "flip": False, "ties": "drop"}
    section |= {name: value for name, value in fixed.items() if name in options}
  result = ConfigDict(config).unlock()
  result.data = ConfigDict(section)
  result.seed = 0  # the same pairs in runs with other seeds
  result.batch_size = min(config.held_out.pairs, config.batch_size)
  if config.held_out.pairs % result.batch_size:
    raise InputError(
      f"config.held_out.pairs {config.held_out.pairs} is no multiple of config.batch_size "
      f"{config.batch_size}, the batch size of the evaluation; make it one, or smaller"
    )
  return result


class HeldOutEvaluation:
  """Compares the policy with the initial pipeline on held-out examples, at steps of one run.

  All processes call the methods in the same order.

  Args:
    run: The run.

  Raises:
    InputError: The held-out examples cannot be used, or are the training examples, or
      the records in the work directory were computed from other examples.
  """

  def __init__(self, run: MonitoredRun):
    section, config = run.config.held_out, held_out_config(run.config)
    examples = setup.load_examples(config)
    pipeline = run.objective.pipeline
    cached, needed = (setup.cached_components(pipeline, x) for x in (examples, run.examples))
    if cached != needed:
      raise InputError(
        f"held-out pairs have cached {', '.join(cached) or 'nothing'}, training pairs "
        f"{', '.join(needed) or 'nothing'}; cache both the same way (dmpo-jax data cache-latents) "
        "and name the held-out pairs by config.held_out.data"
      )
    if examples.fingerprint() == run.examples.fingerprint():
      raise InputError("config.held_out names the examples that the run trains on; hold some out")
    if len(examples) < section.pairs:
      raise InputError(
        f"config.held_out.pairs is {section.pairs}, and there are {len(examples)} held-out examples"
      )
    if config.batch_size % run.mesh.size:
      raise InputError(
        f"config.held_out.pairs {section.pairs}, in batches of {config.batch_size}, do not divide "
        f"over {run.mesh.size} devices; make it a multiple of {run.mesh.size}"
      )
    loaders = setup.make_loaders(config, run.pipeline, examples)
    batches = DeviceBatches(loaders, config.batch_size, sharding.batch(run.mesh))
    self._batches = lambda: (batches[i] for i in range(section.pairs // config.batch_size))
    self._errors = held_out_errors.make_errors(run.objective, run.mesh, section.bins)
    self._workdir, self._objective = run.workdir, run.objective
    health = run.config.health
    names = held_out_errors.Thresholds._fields
    self._thresholds = held_out_errors.Thresholds(*(health[name] for name in names))
    if "saturates" in health.stop and not held_out_errors.has_gradient_factor(run.objective.loss):
      raise InputError(
        f"config.health.stop names 'saturates', and loss {run.config.loss.name!r} has no gradient "
        "factor that could vanish; leave the alarm out"
      )
    self._settings = {
      "data": examples.fingerprint(),
      "pairs": section.pairs,
      "bins": section.bins,
    }
    self._check_settings()
    self._can_plot = importlib.util.find_spec("matplotlib") is not None
    if not self._can_plot:
      LOGGER.info("held_out.png needs matplotlib: pip install 'dmpo-jax[monitor]'")

  def _check_settings(self) -> None:
    """Raises if there are records of another evaluation: its curves would not compare."""
    path = self._workdir / "held_out.json"
    if not path.exists():
      return
    stored = files.read_json(path, advice="move held_out.json and metrics/held_out-* away")
    if different := differences(stored, self._settings):
      raise InputError(
        f"{path} says that metrics/held_out-* is of other settings; set config.held_out as it was, "
        f"or move held_out.json and metrics/held_out-* away:\n{describe(different)}"
      )

  def start(self, step: int, initial: Params, frozen: Params) -> None:
    """Computes the errors of the reference.

    Args:
      step: Steps done.
      initial: Trained parameters at step 0, on the devices.
      frozen: Parameters that are not trained.
    """
    self._start, self._weights = held_out_errors.measure(
      self._errors, initial, frozen, self._batches()
    )

  def evaluate(
    self,
    step: int,
    trained: Params,
    frozen: Params,
    writer: MetricsWriter | None,
    *,
    reference: Params | None = None,
  ) -> dict[str, Any] | None:
    """Evaluates the policy and writes a record and the figure.

    Args:
      step: Steps done.
      trained: Trained parameters at that step.
      frozen: Parameters that are not trained.
      writer: None in processes that write no files.
      reference: A reference that moves; None: it is frozen.

    Returns:
      The record, see `held_out_errors.summarise`; None without a writer.
    """
    policy = self._start
    moving = None if reference is None else self._start
    if step:
      policy, _ = held_out_errors.measure(self._errors, trained, frozen, self._batches())
      if reference is not None:
        moving, _ = held_out_errors.measure(self._errors, reference, frozen, self._batches())
    if writer is None:
      return None
    write_atomically(self._workdir / "held_out.json", json.dumps(self._settings) + "\n")
    errors = held_out_errors.HeldOutErrors(policy, self._start, self._weights, moving)
    edges = self._objective.pipeline.process.bins(self._settings["bins"])
    record = held_out_errors.summarise(errors, self._objective.loss, edges, self._thresholds)
    writer.write_held_out(step, record)
    if self._can_plot:
      title = f"{self._workdir.name}: {self._settings['pairs']} held-out examples"
      bins = self._settings["bins"]  # a damaged file may hold records of another number
      records = [r for r in read(self._workdir, "held_out") if len(r["bins"]) == bins]
      held_out_plot.plot(records, self._workdir / "held_out.png", title=title)
    return record
