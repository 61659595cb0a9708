"""safetensors files of which only the bytes of the tensors that are asked for are read.

The format: 8 bytes, the length of a header in little-endian; the header in JSON, {name: {"dtype",
"shape", "data_offsets": [first, end]}}; then the tensors' bytes in row-major order, without gaps.
The library safetensors maps a whole file into memory, which only a local disk can do.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.common.byte_ranges import ByteRanges
from dmpo_jax.errors import InputError, short

MAX_HEADER = 100_000_000  # bytes, as in safetensors
# Code of a dtype in a header -> its name in numpy.
CODES = {
  "BOOL": "bool",
  "U8": "uint8",
  "I8": "int8",
  "F8_E5M2": "float8_e5m2",
  "F8_E4M3": "float8_e4m3fn",
  "I16": "int16",
  "U16": "uint16",
  "F16": "float16",
  "BF16": "bfloat16",
  "I32": "int32",
  "U32": "uint32",
  "F32": "float32",
  "I64": "int64",
  "U64": "uint64",
  "F64": "float64",
}
FLOATS = ("F32", "F16", "BF16")


class Entry(NamedTuple):
  """A tensor in an open file; its values are read by `read` alone.

  Attributes:
    ranges: The file.
    name: Name of the tensor.
    code: Code of its dtype.
    shape: Its shape.
    start: Position of its first byte in the file.
  """

  ranges: ByteRanges
  name: str
  code: str
  shape: tuple[int, ...]
  start: int

  @property
  def dtype(self) -> str:
    """Name of the dtype of a parameter; the file's code of any other dtype."""
    return CODES[self.code] if self.code in FLOATS else self.code

  def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
    """The slice at `index`; None for the whole tensor.

    The bytes of the rows in the first slice are read, in one range; the other slices are taken
    in memory.

    Args:
      index: Slices with step 1 for all axes.
    """
    rows = slice(None) if not index else index[0]
    first, end, _ = rows.indices(self.shape[0]) if self.shape else (0, 1, 1)
    shape = (end - first, *self.shape[1:]) if self.shape else ()
    dtype = jnp.dtype(CODES[self.code])
    row = math.prod(self.shape[1:]) * dtype.itemsize
    content = self.ranges.read(self.start + first * row, math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(content, dtype).reshape(shape)
    return array[(slice(None), *index[1:])] if index else array


def open_file(
  path: paths.Path, *, advice: str, where: object = None
) -> tuple[dict[str, Entry], dict[str, str]]:
  """The tensors of a file, of which the header is read and checked, and its metadata.

  Args:
    path: The file.
    advice: What the user can do about a damaged file.
    where: The file in messages; None: its name.

  Returns:
    Name -> `Entry`, in the order of the header; texts by name.

  Raises:
    InputError: The file is missing or damaged.
  """
  with files.reading(where or path.name, "safetensors file", advice=advice):
    ranges = ByteRanges(path)
    if ranges.size < 8:
      raise ValueError(f"it has {ranges.size} bytes")
    length = int.from_bytes(ranges.read(0, 8), "little")
    if not 2 <= length <= min(MAX_HEADER, ranges.size - 8):
      raise ValueError(f"its header would have {length} of {ranges.size} bytes")
    try:
      header = files.parse_json(bytes(ranges.read(8, length)), "the header")
    except InputError as error:
      raise ValueError(str(error)) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
      raise ValueError(f"its metadata is {short(metadata)}")
    entries, ends = {}, []
    for name, fields in header.items():
      code, shape, (first, end) = _fields(name, fields)
      entries[name] = Entry(ranges, name, code, shape, 8 + length + first)
      ends.append((first, end, name))
    position = 0
    for first, end, name in sorted(ends):
      if first != position:
        raise ValueError(
          f"{short(name)} begins at {first}, the tensor before it ends at {position}"
        )
      position = end
    if 8 + length + position != ranges.size:
      raise ValueError(f"it has {ranges.size} bytes, its header describes {8 + length + position}")
  return entries, metadata


def _fields(name: str, fields: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
  """Code, shape and offsets of a tensor in a header.

  Raises:
    ValueError: They are not valid, or do not belong together.
  """
  if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
    raise ValueError(f"its entry {short(name)} is {short(fields)}")
  code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
  if not isinstance(code, str) or code not in CODES:
    raise ValueError(f"{short(name)} has the dtype {short(code)}")
  for numbers in (shape, offsets):
    if not isinstance(numbers, list) or not all(
      isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 63 for x in numbers
    ):
      raise ValueError(f"{short(name)} has the shape or the offsets {short(numbers)}")
  size = math.prod(shape) * jnp.dtype(CODES[code]).itemsize
  if len(offsets) != 2 or offsets[1] - offsets[0] != size:
    raise ValueError(f"{short(name)} of {size} bytes has the offsets {short(offsets)}")
  return code, tuple(shape), (offsets[0], offsets[1])
