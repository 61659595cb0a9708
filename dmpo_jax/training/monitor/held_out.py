"""The health panel of a run: its held-out examples, its rows, its picture. See `health`."""

import importlib.util
import inspect
import json
import pathlib
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import data, interop
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError
from dmpo_jax.parallel import sharding
from dmpo_jax.training import setup
from dmpo_jax.training.device_batches import Feed
from dmpo_jax.training.monitor import held_out_errors, held_out_plot
from dmpo_jax.training.monitor.metrics import MetricsWriter, read
from dmpo_jax.training.objective import Objective, Params


def held_out(config: ConfigDict) -> ConfigDict:
  """The config of a run with its held-out examples in the place of those that it trains on.

  Args:
    config: A checked config.

  Returns:
    A copy. `data` is config.held_out.data or, if that has no name, config.data with the split
    config.held_out.split, center crops, no flips and no ties, as far as the data set has these
    options. `batch_size` is that of the evaluation.

  Raises:
    InputError: The run's data set has no splits, or batches do not make up the pairs.
  """
  section = config.held_out.data.to_dict()
  if not section["name"]:
    section = config.data.to_dict()
    known = inspect.signature(data.DATASETS[section["name"]]).parameters
    if "split" not in known:
      raise InputError(
        f"config.held_out.every is {config.held_out.every}, and data set {section['name']!r} has "
        "no splits: name held-out examples by config.held_out.data"
      )
    section["split"] = config.held_out.split
    # A fixed set wants neither chance nor ties, of which no image is the preferred one.
    calm = {"crop": "center", "flip": False, "ties": "drop"}
    section |= {name: value for name, value in calm.items() if name in known}
  result = ConfigDict(config).unlock()
  result.data = ConfigDict(section)
  result.seed = 0  # the same pairs in runs of other seeds
  result.batch_size = min(config.held_out.pairs, config.batch_size)
  if config.held_out.pairs % result.batch_size:
    raise InputError(
      f"config.held_out.pairs {config.held_out.pairs} is no multiple of config.batch_size "
      f"{config.batch_size}, in which they are measured; make it one, or smaller"
    )
  return result


class Panel:
  """What `health` measures, at the steps of one run. All processes call its methods alike.

  Args:
    config: A checked config.
    pipeline: The one that the run starts from.
    examples: Those that are trained on.
    objective: The run's.
    mesh: The run's.
    workdir: The run's directory.
    say: Shows a line to a person.

  Raises:
    InputError: The held-out examples cannot be used, or are those that are trained on, or the rows
      that are there are of others.
  """

  def __init__(
    self,
    config: ConfigDict,
    pipeline: interop.Pipeline,
    examples: setup.Data,
    objective: Objective,
    mesh: Mesh,
    workdir: pathlib.Path,
    say: Callable[[str], None],
  ):
    section, chosen = config.held_out, held_out(config)
    self._workdir, self._say, self._objective = workdir, say, objective
    kept = setup.load_examples(chosen)
    stored, needed = setup.stored(kept), setup.stored(examples)
    if stored != needed:
      raise InputError(
        f"of the held-out examples {stored or 'nothing'} is stored, of those that the run trains "
        f"on {needed or 'nothing'}: name a config.held_out.data that was encoded as config.data was"
      )
    if kept.fingerprint() == examples.fingerprint():
      raise InputError("config.held_out names the examples that the run trains on; hold some out")
    if len(kept) < section.pairs:
      raise InputError(
        f"config.held_out.pairs is {section.pairs}, and there are {len(kept)} held-out examples"
      )
    if chosen.batch_size % mesh.size:
      raise InputError(
        f"config.held_out.pairs {section.pairs}, {chosen.batch_size} at a time, do not divide over "
        f"{mesh.size} devices; make it a multiple of {mesh.size}"
      )
    loaders = setup.make_loaders(chosen, pipeline, kept)
    feed = Feed(loaders, chosen.batch_size, sharding.batch(mesh))
    count = section.pairs // chosen.batch_size
    self._batches = lambda: (feed[i] for i in range(count))
    self._errors = held_out_errors.make_errors(objective, mesh, section.bins)
    self._what = {"data": kept.fingerprint(), "pairs": section.pairs, "bins": section.bins}
    self._check_same()
    self._draws = importlib.util.find_spec("matplotlib") is not None
    if not self._draws:
      say("held_out.png is drawn by matplotlib: pip install 'dmpo-jax[monitor]'")

  def _check_same(self) -> None:
    """Refuses rows of other examples: a curve that jumps there would say nothing."""
    path = self._workdir / "held_out.json"
    if path.exists() and (there := json.loads(path.read_text())) != self._what:
      raise InputError(
        f"{path} says that held_out.jsonl is of {there}, now it would be {self._what}: set "
        "config.held_out as it was, or move held_out.json and held_out.jsonl away"
      )

  def begin(self, begun: int, initial: Params, frozen: Params) -> None:
    """Measures the reference.

    Args:
      begun: Steps that are done.
      initial: What the run trained at step 0, on the devices.
      frozen: Parameters that are not trained.
    """
    self._reference, self._weights = held_out_errors.measure(
      self._errors, initial, frozen, self._batches()
    )
    rows = [row for row in read(self._workdir, "held_out") if row["step"] <= begun]
    self._warned = any(row["winner_rises"] for row in rows)

  def look(self, done: int, trained: Params, frozen: Params, writer: MetricsWriter | None) -> None:
    """Writes a row and the picture.

    Args:
      done: Steps that are done.
      trained: What they trained.
      frozen: Parameters that are not trained.
      writer: None in processes that write nothing.
    """
    policy = self._reference
    if done:
      policy, _ = held_out_errors.measure(self._errors, trained, frozen, self._batches())
    if writer is None:
      return
    write_atomically(self._workdir / "held_out.json", json.dumps(self._what) + "\n")
    look = held_out_errors.Look(policy, self._reference, self._weights)
    timesteps = len(self._objective.schedule.alphas_cumprod)
    row = held_out_errors.row(look, self._objective.loss, timesteps)
    writer.write_held_out(done, row)
    if row["winner_rises"] and not self._warned:
      self._warned = True
      self._say(held_out_errors.warning(done, row))
    if self._draws:
      rows = read(self._workdir, "held_out")
      title = f"{self._workdir.name}: {self._what['pairs']} held-out examples"
      held_out_plot.draw(rows, self._workdir / "held_out.png", title=title)
