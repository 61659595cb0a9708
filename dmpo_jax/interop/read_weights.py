"""A network's weights from safetensors files, leaf by leaf, into numpy or onto devices."""

from __future__ import annotations

import concurrent.futures
import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dmpo_jax import models
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, printable, short
from dmpo_jax.interop import files, state_dict, tensor_file, weight_names
from dmpo_jax.models import trees

# Prefix of the names in published text encoders. Files by transformers 5 lack it, and transformers
# reads both. Our trees have it.
TEXT_PREFIX = "text_model."

# Former names of attention layers in autoencoders (diffusers before 0.18); SD1.5's file has them.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

LOGGER = logging.getLogger(__name__)

# One array under two names: T5's table of tokens, of which files have either name or both.
TIED = {"encoder.embed_tokens.weight": "shared.weight"}

THREADS = 8

# File names of shards in an index.
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.safetensors", re.ASCII)

Bounds = tuple[tuple[int, int], ...]


def read_network(
  folder: paths.Path,
  config: Mapping[str, Any],
  *,
  variant: str | None,
  dtype: str | None,
  shardings: Callable[[trees.Tree], trees.Tree] | None,
  strict: bool = False,
) -> dict[str, Any]:
  """The parameters of a network in a folder, with a second copy of at most one leaf per thread.

  Args:
    folder: Folder of the weights.
    config: The network's config.
    variant: Variant of the weights, or None.
    dtype: Dtype of the parameters, one of `state_dict.FLOATS`, or None for the stored one.
    shardings: `shardings(abstract tree)` returns a tree of shardings: each leaf is then a
      jax.Array, and this process reads the shards of its devices. None: numpy arrays.
    strict: Whether tensors that the network does not read are refused; otherwise a warning lists
      them, as torch programs do.

  Returns:
    A parameter tree.

  Raises:
    InputError: The weights are missing, damaged, or do not fit the config.
  """
  with files.located(folder):
    entries = open_folder(folder, config, variant)
  return read_entries(entries, config, folder, dtype=dtype, shardings=shardings, strict=strict)


def read_entries(
  entries: Mapping[str, Entry],
  config: Mapping[str, Any],
  where: object,
  *,
  dtype: str | None,
  shardings: Callable[[trees.Tree], trees.Tree] | None = None,
  strict: bool = False,
) -> dict[str, Any]:
  """The parameters of a network from tensors by their torch names.

  Args:
    entries: The tensors of a file.
    config: The network's config.
    where: The file or folder, for messages.
    dtype: As for `read_network`, and so are `shardings` and `strict`.

  Returns:
    A parameter tree.

  Raises:
    InputError: The tensors do not fit the config, or overflow the dtype.
  """
  with files.located(where):
    abstract = models.abstract(config)
    names = state_dict.torch_names(abstract)
    entries = _aligned(entries, names)
    surplus = state_dict.check_state(entries, abstract, strict=strict)
    if surplus:
      LOGGER.warning(
        "%s",
        printable(f"{where}: {len(surplus)} tensors that no layer reads: {', '.join(surplus)}"),
      )
    targets = {} if shardings is None else trees.flatten(shardings(abstract))
    if shardings is not None and targets.keys() != set(names.values()):
      differing = sorted(targets.keys() ^ set(names.values()))
      raise InputError(f"shardings and parameters are different trees: {', '.join(differing)}")

    def leaf(name: str) -> np.ndarray | jax.Array:
      path = names[name]
      # CLIP's scale is a logarithm: rounded to bfloat16, it would change the scale by a percent.
      kind = "float32" if dtype and not entries[name].shape else dtype
      if shardings is None:
        return _read(entries[name], path, None, kind)
      return _read_sharded(entries[name], path, targets[path], kind)

    # Copying releases Python's lock; more threads would have more leaves in memory twice.
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
      leaves = dict(zip(names.values(), pool.map(leaf, names), strict=True))
    return trees.unflatten(leaves | _moved(leaves, targets))


def with_buffers(
  folder: paths.Path, config: Mapping[str, Any], *, variant: str | None
) -> dict[str, Any]:
  """The config of a network, with fields for arrays in its file that its other fields do not give.

  Args:
    folder: Folder of the weights.
    config: The network's config.
    variant: Variant of the weights, or None.

  Returns:
    The config. An array that the file lacks is that of the config.

  Raises:
    InputError: The weights are missing or damaged, or no config has these arrays.
  """
  with files.located(folder):
    fields: dict[str, Any] = {}
    if not (buffers := models.buffers(config)):
      return dict(config)
    entries = open_folder(folder, config, variant)
    for name, buffer in buffers.items():
      if name not in entries:
        continue
      if entries[name].shape != buffer.shape:
        raise InputError(
          f"{name} is {list(entries[name].shape)}, expected {list(buffer.shape)} by its config"
        )
      with files.located(name):
        fields |= buffer.recover(entries[name].read(None))
    return {**config, **fields}


class Entry(Protocol):
  """A tensor in a file.

  Attributes:
    shape: Its shape in torch's layout.
    dtype: Name of its dtype.
    read: `read(index)` returns the slice at `index` in torch's layout; None for all of it.
  """

  shape: tuple[int, ...]
  dtype: str

  def read(self, index: tuple[slice, ...] | None) -> np.ndarray: ...


def _read(
  entry: Entry, path: str, index: tuple[slice, ...] | None, dtype: str | None
) -> np.ndarray:
  """The slice of a leaf at `index` (in our layout), as a C-contiguous array."""
  axes = state_dict.torch_axes(path, len(entry.shape))
  if index is not None:
    index = tuple(index[axis] for axis in axes)
  array = entry.read(index).transpose(np.argsort(axes))
  return state_dict.cast(array, dtype, path)


def _read_sharded(
  entry: Entry, path: str, sharding: jax.sharding.Sharding, dtype: str | None
) -> jax.Array:
  """A leaf as a jax.Array, of which this process reads each byte that its devices need once."""
  axes = state_dict.torch_axes(path, len(entry.shape))
  shape = tuple(entry.shape[axis] for axis in np.argsort(axes))
  if not sharding.is_fully_addressable:
    sharding = row_sharding(path, shape, sharding)
  local = {bounds(i, shape) for i in sharding.addressable_devices_indices_map(shape).values()}
  shards = read_shards(entry, path, local, dtype)
  return jax.make_array_from_callback(shape, sharding, lambda index: shards[bounds(index, shape)])


def row_sharding(
  path: str, shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> jax.sharding.Sharding:
  """The sharding in which several processes read a leaf: by rows of the file, if possible.

  Shards of another axis lie all over the tensor's bytes: each process would read all of them. Read
  by rows, and then moved between the devices, each byte is read by one process.

  Args:
    path: Path of the leaf.
    shape: Its shape.
    sharding: The sharding that it will have.

  Returns:
    A sharding of torch's first axis over the same devices; `sharding` itself if it is one, or if it
    divides no axis or several, or so many parts do not divide that axis.
  """
  if not isinstance(sharding, NamedSharding) or not shape:
    return sharding
  rows = state_dict.torch_axes(path, len(shape))[0]
  shard = sharding.shard_shape(shape)
  divided = [axis for axis, size in enumerate(shape) if shard[axis] != size]
  if len(divided) != 1 or divided == [rows]:
    return sharding
  (axis,) = divided
  if shape[rows] % (shape[axis] // shard[axis]):
    return sharding
  names = [None] * len(shape)
  names[rows] = sharding.spec[axis]
  return NamedSharding(sharding.mesh, PartitionSpec(*names))


def _moved(
  leaves: Mapping[str, np.ndarray | jax.Array], targets: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
  """The leaves that were read in another sharding than theirs, in theirs; all processes call it."""
  others = {path: leaves[path] for path in targets if leaves[path].sharding != targets[path]}
  if not others:
    return {}
  wanted = {path: targets[path] for path in others}
  return jax.jit(lambda tree: tree, out_shardings=wanted)(others)


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
  """First and end of each slice."""
  return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def read_shards(
  entry: Entry, path: str, local: Collection[Bounds], dtype: str | None
) -> dict[Bounds, np.ndarray]:
  """The shards of a leaf that one process holds.

  A shard of rows of the file (of torch's first axis) is one range of bytes, which is read alone.
  Shards of another axis are cut from the rows that they have in common.

  Args:
    entry: The tensor.
    path: Path of the leaf.
    local: Bounds of the shards, from and to along each axis of the leaf.
    dtype: Dtype of the result, or None for the stored one.

  Returns:
    Bounds -> C-contiguous array.
  """
  axes = state_dict.torch_axes(path, len(entry.shape))
  sizes = dict(zip(axes, entry.shape, strict=True))
  is_rows = all(b[axis] == (0, sizes[axis]) for b in local for axis in axes[1:])
  if is_rows:
    return {b: _read(entry, path, tuple(slice(*x) for x in b), dtype) for b in local}
  around = tuple(
    (min(x[0] for x in along), max(x[1] for x in along)) for along in zip(*local, strict=True)
  )
  box = _read(entry, path, tuple(slice(*x) for x in around), None)
  return {
    b: state_dict.cast(
      box[tuple(slice(x[0] - a[0], x[1] - a[0]) for x, a in zip(b, around, strict=True))],
      dtype,
      path,
    )
    for b in local
  }


def _aligned(entries: Mapping[str, Entry], expected: Mapping[str, str]) -> dict[str, Entry]:
  """The entries by the names of our trees."""
  aligned: dict[str, tuple[str, Entry]] = {}
  for name, entry in entries.items():
    new = _current_name(name, expected)
    if name in TIED and TIED[name] in expected:
      if TIED[name] in entries:
        continue
      new = TIED[name]
    if new in aligned:
      raise InputError(
        f"{new} occurs twice, also as {name if aligned[new][0] == new else aligned[new][0]}; "
        "the file mixes two ways of naming"
      )
    aligned[new] = name, entry
  return {new: entry for new, (_, entry) in aligned.items()}


def _current_name(name: str, expected: Mapping[str, str]) -> str:
  if name in expected:
    return name
  if f"{TEXT_PREFIX}{name}" in expected:
    return f"{TEXT_PREFIX}{name}"
  layer, _, leaf = name.rpartition(".")
  block, _, old = layer.rpartition(".")
  renamed = f"{block}.{OLD_NAMES.get(old, old)}.{leaf}"
  return renamed if renamed in expected else name


def open_folder(
  folder: paths.Path, config: Mapping[str, Any], variant: str | None
) -> dict[str, tensor_file.Entry]:
  """The tensors of a folder's weights file, or of the shards that its index names."""
  names = files.names(folder)
  weights, _ = weight_names.choose(names, weight_names.stem(config), variant)
  if not weights:
    raise weight_names.explain_absence(names, config, variant, str(folder))
  if weights[0].endswith(weight_names.SUFFIX):
    return open_file(folder / weights[0])
  index = folder / weights[0]
  weight_map = files.read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f"{index.name} names no shards: it has no weight_map; download it again")
  for file in weight_map.values():
    if not isinstance(file, str) or not SHARD.fullmatch(file):
      raise InputError(
        f"{index.name} names the shard {short(file)}, which is no name of a "
        f"{weight_names.SUFFIX} file in its folder; download it again"
      )
  shards = sorted(set(weight_map.values()))
  absent = [name for name in shards if not (folder / name).is_file()]
  if absent:
    raise InputError(f"{index.name} names shards that are missing: {', '.join(absent)}")
  tensors = {
    (name, file): entry for file in shards for name, entry in open_file(folder / file).items()
  }
  listed = set(weight_map.items())
  problems = [f"{file} has {name}, which is not listed" for name, file in tensors.keys() - listed]
  problems += [f"{name} is not in {file}" for name, file in listed - tensors.keys()]
  if problems:
    raise InputError(
      f"{index.name} and its shards do not belong together; download them again:"
      + "".join(f"\n  {problem}" for problem in sorted(problems))
    )
  return {name: entry for (name, _), entry in tensors.items()}


def open_file(file: paths.Path) -> dict[str, tensor_file.Entry]:
  """The tensors of one safetensors file."""
  return tensor_file.open_file(file, advice="it may be cut short: download or export it again")[0]
