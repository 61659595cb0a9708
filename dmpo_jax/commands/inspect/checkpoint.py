"""The parameters in a run's checkpoint, under torch's names, read a few at a time."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.interop import state_dict
from dmpo_jax.models import trees

# Each restore costs some tens of milliseconds whatever it reads.
CHUNK_BYTES = 256 * 2**20


class Checkpoint(NamedTuple):
  """An opened checkpoint.

  Attributes:
    step: Its step.
    steps: Those of all checkpoints of the run.
    weights: What its parameters are, in words.
    components: Trained component -> torch name (of a LoRA: our own name) -> `Leaf`.
  """

  step: int
  steps: list[int]
  weights: str
  components: dict[str, dict[str, "Leaf"]]


class Leaf(NamedTuple):
  """A parameter in a checkpoint; nothing is read before `read`."""

  reader: "_Reader"
  path: str
  saved: Any  # orbax's metadata of the array

  @property
  def shape(self) -> tuple[int, ...]:
    return state_dict.torch_shape(self.path, self.saved.shape)

  @property
  def dtype(self) -> str:
    return str(self.saved.dtype)

  @property
  def size(self) -> int:
    """Its bytes; compression aside, those on disk."""
    return int(np.prod(self.saved.shape)) * np.dtype(self.saved.dtype).itemsize

  def read(self, index: None) -> np.ndarray:
    """All of it, in torch's layout; parts cannot be asked for."""
    return state_dict.to_torch(self.reader.leaf(self.path), self.path)


def run_of(path: pathlib.Path) -> tuple[pathlib.Path | None, int | None]:
  """The run that a path belongs to, and the step it names.

  Args:
    path: The directory of a run, its checkpoints/ or a checkpoint in there.

  Returns:
    (run, step); step is None for the last one, and run None if the path belongs to none.
  """
  path = path.absolute()
  run, step = path, None
  if path.name == "checkpoints":
    run = path.parent
  elif path.parent.name == "checkpoints" and path.name.isdigit():
    run, step = path.parent.parent, int(path.name)
  return (run, step) if (run / "run.json").is_file() else (None, None)


def open_checkpoint(run: pathlib.Path, step: int | None, *, average: bool) -> Checkpoint:
  """Opens a checkpoint of a run, which may still be going.

  Args:
    run: The directory of the run.
    step: Which; None: the last.
    average: Whether to take the moving average where the run keeps one, or the last parameters.

  Returns:
    A `Checkpoint`.

  Raises:
    InputError: There is no such checkpoint, or it cannot be read.
  """
  directory = run / "checkpoints"
  there = directory.iterdir() if directory.is_dir() else ()
  steps = sorted(int(p.name) for p in there if p.name.isdigit() and (p / "state").is_dir())
  if not steps:
    raise InputError(f"{run} holds no checkpoint yet")
  if step is not None and step not in steps:
    raise InputError(f"{run} has no checkpoint {step}; it has {', '.join(map(str, steps))}")
  step = steps[-1] if step is None else step
  reader = _Reader(directory / str(step) / "state")
  part, weights = "params", "the last ones"
  if average and reader.tree.get("ema") is not None:
    part, weights = "ema", "the moving average"
  elif average:
    weights += " (no moving average is kept)"
  components = {}
  for name, tree in reader.tree[part].items():
    flat = trees.flatten(tree)
    reader.expect({f"{part}.{name}.{path}": leaf for path, leaf in flat.items()})
    # The factors of a LoRA have no torch names in a checkpoint: they keep their own.
    is_lora = all(path.rpartition(".")[2] in ("down", "up") for path in flat)
    names = dict(zip(flat, flat, strict=True)) if is_lora else state_dict.torch_names(tree)
    components[name] = {
      shown: Leaf(reader, f"{part}.{name}.{path}", flat[path]) for shown, path in names.items()
    }
  return Checkpoint(step, steps, weights, components)


class _Reader:
  """Restores leaves in groups, of which it holds the last."""

  def __init__(self, folder: pathlib.Path):
    import orbax.checkpoint as ocp

    self._ocp, self._folder = ocp, folder
    self._handler = ocp.PyTreeCheckpointHandler()
    self._groups: dict[str, dict[str, Any]] = {}
    self._held: dict[str, np.ndarray] = {}
    try:
      self.tree = self._handler.metadata(self._folder).tree
    except Exception as error:  # orbax, tensorstore and json each raise their own
      raise self._damaged(error) from error

  def expect(self, leaves: dict[str, Any]) -> None:
    """Puts leaves that will be read one after the other into groups."""
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
    """A leaf by its path in the state."""
    if path not in self._held:
      self._held = {}
      self._held = self._restore(self._groups[path])
    return self._held[path]

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
    return InputError(f"{self._folder.parent} is no checkpoint or damaged: {reason}")
