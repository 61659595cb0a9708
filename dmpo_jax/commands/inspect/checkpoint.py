"""Parameters in a run's checkpoint under torch's names, read in groups."""

import re
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.errors import InputError
from dmpo_jax.interop import state_dict
from dmpo_jax.models import trees

# Bytes per restore: each restore costs tens of milliseconds, whatever its size.
CHUNK_BYTES = 256 * 2**20
STEP = re.compile(r"[0-9]{1,18}", re.ASCII)


class Checkpoint(NamedTuple):
  """An opened checkpoint.

  Attributes:
    step: Step of the checkpoint.
    steps: Steps of all checkpoints of the run.
    weights: Kind of the parameters, in words.
    components: Trained component -> torch name (for a LoRA, the name in its tree) -> `Leaf`.
  """

  step: int
  steps: list[int]
  weights: str
  components: dict[str, dict[str, "Leaf"]]


class Leaf(NamedTuple):
  """A parameter in a checkpoint, which `read` restores."""

  reader: "_Reader"
  path: str
  metadata: Any  # orbax's, of the array

  @property
  def shape(self) -> tuple[int, ...]:
    return state_dict.torch_shape(self.path, self.metadata.shape)

  @property
  def dtype(self) -> str:
    return str(self.metadata.dtype)

  @property
  def size(self) -> int:
    """Bytes, without compression."""
    return int(np.prod(self.metadata.shape)) * np.dtype(self.metadata.dtype).itemsize

  def read(self, index: None) -> np.ndarray:
    """The whole array in torch's layout; `index` is None."""
    return state_dict.to_torch(self.reader.leaf(self.path), self.path)


def run_of(path: paths.Path) -> tuple[paths.Path | None, int | None]:
  """Run and step that a path belongs to.

  Args:
    path: Directory of a run, its checkpoints/, or a checkpoint in that folder.

  Returns:
    (run, step). Step None means the last one; run is None if the path belongs to no run.
  """
  path = path.absolute()
  run, step = path, None
  if path.name == "checkpoints":
    run = path.parent
  elif path.parent.name == "checkpoints" and STEP.fullmatch(path.name):
    run, step = path.parent.parent, int(path.name)
  return (run, step) if (run / "run.json").is_file() else (None, None)


def open_checkpoint(run: paths.Path, step: int | None, *, weights: str) -> Checkpoint:
  """Opens a checkpoint of a run, which may still be training.

  Args:
    run: Directory of the run.
    step: Step of the checkpoint; None: the last one.
    weights: "ema", the EMA weights where the run has them; "last"; or "reference", where it moves.

  Returns:
    A `Checkpoint`.

  Raises:
    InputError: The checkpoint does not exist or cannot be read.
  """
  directory = run / "checkpoints"
  entries = directory.iterdir() if directory.is_dir() else ()
  steps = sorted(int(p.name) for p in entries if STEP.fullmatch(p.name) and (p / "state").is_dir())
  if not steps:
    raise InputError(f"{run} has no checkpoint yet")
  if step is not None and step not in steps:
    raise InputError(f"{run} has no checkpoint {step}; it has {', '.join(map(str, steps))}")
  step = steps[-1] if step is None else step
  reader = _Reader(directory / str(step) / "state")
  with files.reading(directory / str(step), "checkpoint", advice="export another step"):
    part, words = "params", "last weights"
    if weights == "reference":
      if reader.tree.get("reference") is None:
        raise InputError(f"the reference of {run} is frozen: it is the pipeline it started from")
      part, words = "reference", "moving reference"
    elif weights == "ema" and reader.tree.get("ema") is not None:
      part, words = "ema", "EMA weights"
    elif weights == "ema":
      words += " (the run has no EMA)"
    components = {}
    for name, tree in reader.tree[part].items():
      flat = trees.flatten(tree)
      reader.expect({f"{part}.{name}.{path}": leaf for path, leaf in flat.items()})
      # The factors of a LoRA have no torch names in a checkpoint: these are the names in its tree.
      is_lora = all(path.rpartition(".")[2] in ("down", "up") for path in flat)
      names = dict(zip(flat, flat, strict=True)) if is_lora else state_dict.torch_names(tree)
      components[name] = {
        torch_name: Leaf(reader, f"{part}.{name}.{path}", flat[path])
        for torch_name, path in names.items()
      }
  return Checkpoint(step, steps, words, components)


class _Reader:
  """Restores leaves in groups and keeps the last group in memory."""

  def __init__(self, folder: paths.Path):
    import orbax.checkpoint as ocp
    from etils import epath

    self._ocp, self._folder = ocp, epath.Path(str(folder))
    self._handler = ocp.PyTreeCheckpointHandler()
    self._groups: dict[str, dict[str, Any]] = {}
    self._restored: dict[str, np.ndarray] = {}
    try:
      self.tree = self._handler.metadata(self._folder).tree
    except Exception as error:  # orbax, tensorstore and json each raise their own
      raise self._damaged(error) from error

  def expect(self, leaves: dict[str, Any]) -> None:
    """Plans the groups of leaves that will be read in this order."""
    group: dict[str, Any] = {}
    size = CHUNK_BYTES
    for path, leaf in leaves.items():
      nbytes = int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
      if size + nbytes > CHUNK_BYTES:
        group, size = {}, 0
      group[path] = leaf
      size += nbytes
      self._groups[path] = group

  def leaf(self, path: str) -> np.ndarray:
    """Leaf at a path in the state."""
    if path not in self._restored:
      self._restored = {}
      self._restored = self._restore(self._groups[path])
    return self._restored[path]

  def _restore(self, group: dict[str, Any]) -> dict[str, np.ndarray]:
    import jax

    item = trees.unflatten(
      {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in group.items()}
    )
    numpy = self._ocp.RestoreArgs(restore_type=np.ndarray)
    arguments = self._ocp.args.PyTreeRestore(
      item=item, restore_args=jax.tree.map(lambda _: numpy, item), partial_restore=True
    )
    try:
      return trees.flatten(self._handler.restore(self._folder, args=arguments))
    except Exception as error:  # orbax, tensorstore and json each raise their own
      raise self._damaged(error) from error

  def _damaged(self, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{self._folder.parent} is not a checkpoint or is damaged: {reason}")
