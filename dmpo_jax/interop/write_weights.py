"""A parameter tree to safetensors files that torch reads, one tensor in memory at a time."""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmpo_jax import models
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError
from dmpo_jax.interop import files, state_dict, weight_names
from dmpo_jax.models import trees

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_network(
  folder: paths.Path,
  config: Mapping[str, Any],
  params: trees.Tree,
  *,
  variant: str | None,
  dtype: str | None,
  max_shard_size: int,
) -> None:
  """Writes the weights of a network, in one file or in shards with an index.

  Args:
    folder: An existing folder.
    config: The network's config, which the parameters must fit.
    params: The parameters.
    variant: Variant in the files' names, or None.
    dtype: Dtype in the files, one of `state_dict.FLOATS`, or None for each leaf's own.
    max_shard_size: Bytes of a file; a larger tensor has a file of its own.

  Raises:
    InputError: The parameters do not fit, or a value is too large for the dtype.
  """
  leaves = trees.flatten(params)
  names = state_dict.torch_names(params)
  tensors = {
    name: jax.ShapeDtypeStruct(
      state_dict.torch_shape(path, np.shape(leaves[path])), leaves[path].dtype
    )
    for name, path in names.items()
  }
  state_dict.check_state(tensors, models.abstract(config))
  for path, leaf in leaves.items():
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      raise InputError(
        f"{path} is sharded over devices of other processes; gather it before it is saved"
      )
  tensors = {
    name: jax.ShapeDtypeStruct(spec.shape, dtype or spec.dtype) for name, spec in tensors.items()
  }
  buffers = models.buffers(config)
  one = next(iter(tensors.values())).dtype
  tensors |= {name: jax.ShapeDtypeStruct(buffer.shape, one) for name, buffer in buffers.items()}

  def read(name: str) -> np.ndarray:
    if name in buffers:
      return buffers[name].compute(str(tensors[name].dtype))
    return state_dict.to_torch(leaves[names[name]], names[name], dtype)

  stem = weight_names.stem(config)
  shards = _split({name: _bytes(spec) for name, spec in tensors.items()}, max_shard_size)
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    file = weight_names.single(stem, variant)
    if len(shards) > 1:
      file = weight_names.shard(stem, variant, number, len(shards))
    weight_map |= dict.fromkeys(shard, file)
    _write(folder / file, {name: tensors[name] for name in shard}, read)
  if len(shards) > 1:
    size = sum(_bytes(spec) for spec in tensors.values())
    files.write_json(
      folder / weight_names.index(stem, variant),
      {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def parse_size(size: int | str) -> int:
  """A number of bytes from an int or a string such as "5GB" (a GB has 10^9 bytes).

  Raises:
    InputError: It is neither, or not positive.
  """
  if isinstance(size, str):
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", size.upper())
    parsed = int(float(match[1]) * UNITS[match[2]]) if match else 0
  else:
    parsed = size if isinstance(size, int) and not isinstance(size, bool) else 0
  if parsed <= 0:
    raise InputError(
      f'max_shard_size is {size!r}; expected a number of bytes, or a string like "5GB" '
      f"({', '.join(UNITS)})"
    )
  return parsed


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
  """Names in order, in groups of at most `limit` bytes."""
  groups: list[list[str]] = []
  used = limit
  for name, size in sizes.items():
    if used + size > limit:
      groups.append([])
      used = 0
    groups[-1].append(name)
    used += size
  return groups


def _bytes(spec: jax.ShapeDtypeStruct) -> int:
  return spec.size * spec.dtype.itemsize


def _write(file: paths.Path, tensors: Mapping[str, jax.ShapeDtypeStruct], read: Any) -> None:
  """Writes a safetensors file byte for byte as the library does, which needs all tensors at once.

  The layout: the header's length (8 bytes), the header (JSON, padded to 8 bytes), the tensors from
  the widest dtype to the narrowest and then by name.
  """
  order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
  # transformers before version 5 refuses a file without a format.
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name in order:
    begin, end = end, end + _bytes(tensors[name])
    header[name] = {
      "dtype": CODES[str(tensors[name].dtype)],
      "shape": list(tensors[name].shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with file.open("wb") as out:
    out.write(len(text).to_bytes(8, "little"))
    out.write(text)
    for name in order:
      out.write(read(name).reshape(-1).view(np.uint8).data)
