"""Tensors of a file that torch.save wrote, read without torch and without running its code.

Such a file is a zip archive: a pickle `data.pkl` that describes the tensors, and their numbers. The
pickle is a program for a small stack machine. `_Machine` runs it with the few operations of which
descriptions of tensors consist, and calls nothing but the constructors in `GLOBALS`.
"""

import dataclasses
import errno
import io
import pickletools
import shlex
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from dmpo_jax.common import files as common_files
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, short

# Largest description, in bytes; that of a network with a billion parameters has 200 kB.
MAX_DESCRIPTION = 1 << 26
DTYPES = {
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "DoubleStorage": np.float64,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
REBUILD_TENSOR, REBUILD_PARAMETER = (
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_parameter",
)
ORDERED_DICT, SIZE = "collections.OrderedDict", "torch.Size"
GLOBALS = {ORDERED_DICT, SIZE, REBUILD_TENSOR, REBUILD_PARAMETER} | {f"torch.{n}" for n in DTYPES}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Operations that push their own argument.
PUSHED = frozenset(
  {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1"}
) | {"BINFLOAT"}
WRAPPERS = ("state_dict", "model")


@dataclasses.dataclass(frozen=True)
class TorchTensor:
  """A tensor in a file; its values are read by `read` alone.

  Attributes:
    storage: All numbers of its storage, mapped from the file.
    offset: Position of its first number.
    shape: Its shape.
    strides: Steps along its axes, in numbers.
  """

  storage: np.ndarray
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def dtype(self) -> str:
    return self.storage.dtype.name

  def read(self, index: tuple[slice, ...] | None) -> np.ndarray:
    """The slice at `index`, in torch's layout; None for the whole tensor."""
    size = self.storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
      self.storage[self.offset :], self.shape, [size * s for s in self.strides], writeable=False
    )
    return np.array(view if index is None else view[index])


def read_torch_file(file: paths.Path) -> dict[str, TorchTensor]:
  """The tensors of a state dict that torch.save wrote.

  Args:
    file: A file of torch 1.6 or newer. The state dict may be the value of `state_dict` or `model`
      in a dict, and its names may begin with `module.`, as those of torch's data parallel modules.

  Returns:
    Name -> `TorchTensor`, without the prefix.

  Raises:
    InputError: The file is missing, damaged, of another format, or needs an operation or a class
      that descriptions of tensors do not.
  """
  with common_files.reading(file, "torch file", advice="it may be cut short: download it again"):
    try:
      content = _read(paths.local_copy(file))
    except OSError as error:
      if error.errno != errno.EINVAL:
        raise
      raise ValueError("its archive names a place outside of the file") from error
    for wrapper in WRAPPERS:
      if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
        content = content[wrapper]
        break
    if not isinstance(content, dict) or not content:
      raise InputError(f"{file} holds {short(type(content).__name__)}, expected a state dict")
    tensors = {name: value for name, value in content.items() if isinstance(value, TorchTensor)}
    if not tensors or not all(isinstance(name, str) for name in content):
      raise InputError(
        f"{file} holds no tensors by name, but {short(sorted(map(str, content))[:5])}; expected a "
        f"state dict, alone or as {' or '.join(WRAPPERS)}"
      )
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
  return tensors


def _read(file: paths.Path) -> Any:
  """The value of a file of torch.save."""
  if not file.is_file():
    raise FileNotFoundError
  if not zipfile.is_zipfile(file):
    with file.open("rb") as stream:
      pickled = stream.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if not pickled:
      raise ValueError("it is neither a zip archive nor a pickle")
    raise _other_format(file, "is a pickle of torch before 1.6", "torch.load(f, 'cpu')")
  with zipfile.ZipFile(file) as archive:
    entries = {entry.filename: entry for entry in archive.infolist()}
    descriptions = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(descriptions) != 1:
      raise ValueError("the archive has no data.pkl")
    root = descriptions[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
      load = "torch.jit.load(f, 'cpu').state_dict()"
      raise _other_format(file, "is a TorchScript program, as OpenAI's", load)
    if entries[descriptions[0]].file_size > MAX_DESCRIPTION:
      raise ValueError(f"its data.pkl has more than {MAX_DESCRIPTION} bytes")
    if (order := f"{root}byteorder") in entries and archive.read(order) != b"little":
      raise InputError(f"{file} has big-endian numbers; write it on another machine")
    description = archive.read(descriptions[0])
  numbers = np.memmap(file, np.uint8, "r")

  def storage(key: str, kind: type, count: int) -> np.ndarray:
    entry = entries[f"{root}data/{key}"]
    if entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f"{entry.filename} is compressed")
    names = struct.unpack("<HH", numbers[entry.header_offset + 26 :][:4].tobytes())
    start = entry.header_offset + 30 + sum(names)
    size = count * np.dtype(kind).itemsize
    data = numbers[start : start + size]
    if entry.file_size < size or data.size != size:
      raise ValueError(f"{entry.filename} has {entry.file_size} bytes, expected {size}")
    return data.view(kind)

  return _Machine(file, storage).run(description)


def _other_format(file: paths.Path, what: str, load: str) -> InputError:
  new = str(file.with_name(f"{file.stem}_converted.pt"))
  code = f"import sys, torch; f, new = sys.argv[1:]; torch.save({load}, new)"
  return InputError(
    f"{file} {what}, which is not read. If you trust the file, convert it once, with torch "
    f"installed:\n  python -c {shlex.quote(code)} {shlex.quote(str(file))} {shlex.quote(new)}"
  )


@dataclasses.dataclass(frozen=True)
class _Global:
  """A class or function that the pickle names; it is never imported."""

  name: str


_MARK = object()


class _Machine:
  """Runs a pickle that describes tensors."""

  def __init__(self, file: paths.Path, storage: Any):
    self.file, self.storage = file, storage
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def run(self, description: bytes) -> Any:
    """The value that the pickle describes."""
    for operation, argument, _ in pickletools.genops(io.BytesIO(description)):
      name = operation.name
      if name in PUSHED:
        self.stack.append(argument)
      elif name in CONSTANTS:
        self.stack.append(CONSTANTS[name])
      elif name in ("PROTO", "FRAME"):
        pass
      elif name == "STOP":
        return self.stack.pop()
      elif (method := getattr(self, f"_{name.lower()}", None)) is not None:
        method(argument)
      else:
        raise InputError(
          f"{self.file} needs the pickle operation {name}, which a file of tensors does not; it "
          "is not read, because it may run code"
        )
    raise ValueError("its pickle has no end")

  def _pop_to_mark(self) -> list[Any]:
    at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
    items = self.stack[at + 1 :]
    del self.stack[at:]
    return items

  def _mark(self, _: None) -> None:
    self.stack.append(_MARK)

  def _empty_dict(self, _: None) -> None:
    self.stack.append({})

  def _empty_list(self, _: None) -> None:
    self.stack.append([])

  def _empty_tuple(self, _: None) -> None:
    self.stack.append(())

  def _tuple(self, _: None) -> None:
    self.stack.append(tuple(self._pop_to_mark()))

  def _tuple1(self, _: None) -> None:
    self.stack[-1:] = [tuple(self.stack[-1:])]

  def _tuple2(self, _: None) -> None:
    self.stack[-2:] = [tuple(self.stack[-2:])]

  def _tuple3(self, _: None) -> None:
    self.stack[-3:] = [tuple(self.stack[-3:])]

  def _append(self, _: None) -> None:
    item = self.stack.pop()
    self._top(list).append(item)

  def _appends(self, _: None) -> None:
    items = self._pop_to_mark()
    self._top(list).extend(items)

  def _setitem(self, _: None) -> None:
    key, value = self.stack[-2:]
    del self.stack[-2:]
    self._top(dict)[key] = value

  def _setitems(self, _: None) -> None:
    items = self._pop_to_mark()
    self._top(dict).update(zip(items[::2], items[1::2], strict=True))

  def _top(self, kind: type) -> Any:
    if not isinstance(self.stack[-1], kind):
      raise ValueError(f"its pickle adds items to a {type(self.stack[-1]).__name__}")
    return self.stack[-1]

  def _binput(self, position: int) -> None:
    self.memo[position] = self.stack[-1]

  _long_binput = _binput

  def _memoize(self, _: None) -> None:
    self.memo[len(self.memo)] = self.stack[-1]

  def _binget(self, position: int) -> None:
    self.stack.append(self.memo[position])

  _long_binget = _binget

  def _global(self, name: str) -> None:
    self._named(name.replace(" ", "."))

  def _stack_global(self, _: None) -> None:
    module, name = self.stack[-2:]
    del self.stack[-2:]
    self._named(f"{module}.{name}")

  def _named(self, name: str) -> None:
    if name not in GLOBALS:
      raise InputError(
        f"{self.file} needs {short(name)}, which a file of tensors does not; it is not read, "
        "because it may run code. If you trust the file, save its state dict alone"
      )
    self.stack.append(_Global(name))

  def _build(self, _: None) -> None:
    self.stack.pop()  # attributes of a state dict: versions of its modules
    self._top(dict)

  def _reduce(self, _: None) -> None:
    arguments = self.stack.pop()
    function = self.stack.pop()
    name = function.name if isinstance(function, _Global) else None
    if name == ORDERED_DICT:
      self.stack.append(dict(*arguments))
    elif name == SIZE:
      self.stack.append(tuple(arguments[0]))
    elif name == REBUILD_PARAMETER:
      self.stack.append(arguments[0])
    elif name == REBUILD_TENSOR:
      self.stack.append(_tensor(*arguments[:4]))
    else:
      raise ValueError(f"its pickle calls {short(name or function)}")

  def _binpersid(self, _: None) -> None:
    kind, dtype, key, _, count = self.stack.pop()
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, _Global) else ""
    if kind != "storage" or name not in DTYPES or not isinstance(key, str) or count < 0:
      raise ValueError("its pickle names a storage of another kind")
    self.stack.append(self.storage(key, DTYPES[name], count))


def _tensor(storage: Any, offset: int, shape: tuple, strides: tuple) -> TorchTensor:
  """A tensor within its storage."""
  numbers = (offset, *shape, *strides)
  if not isinstance(storage, np.ndarray) or len(shape) != len(strides):
    raise ValueError("its pickle describes a tensor without storage")
  if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
    raise ValueError("a tensor has a negative or fractional size")
  last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
  if 0 not in shape and last >= storage.size:
    raise ValueError(f"a tensor of the shape {list(shape)} ends beyond its storage")
  return TorchTensor(storage, offset, shape, strides)
