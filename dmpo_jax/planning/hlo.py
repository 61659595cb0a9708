"""FLOPs and memory traffic of a compiled TPU program.

XLA's own cost analysis counts the body of a loop once and a Pallas kernel not at all. This module
parses the text of the optimised program instead and multiplies loop bodies by their trip counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8}
BYTES |= {"f8e4m3fn": 1, "f8e5m2": 1}
FLOATS = ("bf16", "f16", "f32")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes without memory traffic of their own.
NO_TRAFFIC = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast"})
NO_TRAFFIC |= {"after-all", "partition-id", "replica-id"}
NO_TRAFFIC |= {"send", "send-done", "recv", "recv-done"}

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")
_LINE = re.compile(
  r"\s+(?:ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([a-z][a-z0-9\-]*)\((.*)", re.DOTALL
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """Dtype, shape and bytes of an array; bytes include the padding of its tiles."""

  dtype: str
  shape: tuple[int, ...]
  bytes: float


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a program.

  Attributes:
    name: Name without the percent sign.
    opcode: Opcode, such as "fusion".
    results: Arrays that it returns.
    operands: Names of the instructions whose results it reads.
    attributes: Text after the operands.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  attributes: str

  def called(self, attribute: str) -> str | None:
    """Name of the computation in an attribute, or None."""
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return match and match.group(1)


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations of a program by name, and the name of the entry computation."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


@dataclasses.dataclass(frozen=True)
class Operation:
  """Cost of one instruction on a chip in a step.

  Attributes:
    name: Name of the instruction.
    count: Number of executions in a step.
    flops: FLOPs of matrix products and convolutions in one execution.
    bytes: Bytes read from and written to HBM in one execution.
    is_kernel: True for a Pallas kernel, whose `flops` come from `attention_flops`.
  """

  name: str
  count: int
  flops: float
  bytes: float
  is_kernel: bool


def parse(text: str) -> Program:
  """Parses an optimised program.

  Args:
    text: Result of `compiled.as_text()`.

  Returns:
    `Program`.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current, pending = "", None, ""

  def finish() -> None:
    if pending and current is not None:
      instruction = _instruction(pending)
      computations[current][instruction.name] = instruction

  for line in text.splitlines():
    if current is None:
      header = _HEADER.fullmatch(line)
      if header and not line.startswith("HloModule"):
        current = header.group(2)
        computations[current] = {}
        entry = current if header.group(1) else entry
    elif line == "}":
      finish()
      current, pending = None, ""
    elif re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = ", line):
      finish()
      pending = line
    else:  # the attributes of a kernel span several lines
      pending += line
  return Program(computations, entry)


def _instruction(line: str) -> Instruction:
  name, shape, opcode, rest = _LINE.match(line).groups()
  end = _closing(rest)
  operands = tuple(_NAME.findall(rest[:end])) if opcode not in ("parameter", "constant") else ()
  attributes = rest[end + 1 :] if opcode != "constant" else rest
  return Instruction(name, opcode, tuple(_arrays(shape)), operands, attributes)


def _closing(text: str) -> int:
  """Index of the parenthesis that closes one opened before the text."""
  depth = 1
  for index, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return index
  return len(text)


def _arrays(shape: str) -> Iterator[Array]:
  for dtype, sizes, order, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
    if dtype not in BYTES:
      continue
    dims = tuple(int(size) for size in sizes.split(",") if size)
    yield Array(dtype, dims, _padded_size(dims, order, layout) * BYTES[dtype])


def _padded_size(dims: tuple[int, ...], order: str, layout: str) -> int:
  """Elements of an array in HBM, minor axes padded to full tiles; 0 for on-chip memory."""
  if re.search(r"S\([1-9]", layout):
    return 0
  tile = re.search(r"T\(([\d,]+)\)", layout)
  padded = [dims[int(axis)] for axis in order.split(",")] if order else list(dims[::-1])
  for i, side in enumerate(reversed(tile.group(1).split(",")) if tile and padded else ()):
    if i < len(padded):
      padded[i] = -(-padded[i] // int(side)) * int(side)
  return math.prod(padded)


def walk(program: Program) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
  """Yields each executed instruction with its computation and its number of executions.

  The bodies of loops and calls are visited, a fusion is one instruction. All branches of a
  conditional count.
  """

  def visit(name: str, count: int):
    computation = program.computations[name]
    for instruction in computation.values():
      opcode = instruction.opcode
      if opcode == "while":
        yield from visit(instruction.called("body"), count * trip_count(program, instruction))
      elif opcode in ("call", "async-start"):
        inner = instruction.called("to_apply") or instruction.called("calls")
        yield from visit(inner, count)
      elif opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        names = _NAME.findall(listed.group(1)) if listed else []
        pair = (instruction.called("true_computation"), instruction.called("false_computation"))
        for inner in names or [name for name in pair if name]:
          yield from visit(inner, count)
      else:
        yield instruction, computation, count

  yield from visit(program.entry, 1)


def trip_count(program: Program, loop: Instruction) -> int:
  """Number of iterations of a loop: the compiler's, or the constant in the loop's condition.

  A loop with neither counts once.
  """
  annotation = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if annotation:
    return int(annotation.group(1))
  condition = program.computations[loop.called("condition")].values()
  compared = {o for i in condition if "direction=LT" in i.attributes for o in i.operands}
  limits = [
    re.match(r"(\d+)\)", i.attributes)
    for i in condition
    if i.opcode == "constant" and i.name in compared
  ]
  return max([int(limit.group(1)) for limit in limits if limit], default=1)


def operations(program: Program, mxu_size: int = 128) -> list[Operation]:
  """Cost of each instruction of a program, without collectives.

  Args:
    program: Result of `parse`.
    mxu_size: Rows and columns of a matrix unit.

  Returns:
    `Operation`s with at least one FLOP or byte.
  """
  result = []
  for instruction, computation, count in walk(program):
    if instruction.opcode in NO_TRAFFIC or instruction.opcode.startswith(COLLECTIVES):
      continue
    operands = operands_of(instruction, computation)
    is_kernel = 'custom_call_target="tpu_custom_call"' in instruction.attributes
    if instruction.opcode == "custom-call" and not is_kernel:
      continue  # hints to the compiler
    if is_kernel:
      flops = attention_flops(instruction, operands, mxu_size)
    else:
      flops = _flops(program, instruction, computation)
    traffic = sum(array.bytes for array in (*operands, *instruction.results))
    if flops or traffic:
      result.append(Operation(instruction.name, count, flops, traffic, is_kernel))
  return result


def operands_of(instruction: Instruction, computation: dict[str, Instruction]) -> list[Array]:
  """Arrays that an instruction of a computation reads."""
  names = [name for name in instruction.operands if name in computation]
  return [array for name in names for array in computation[name].results]


def attention_flops(kernel: Instruction, operands: list[Array], mxu_size: int) -> float:
  """FLOPs of a splash attention kernel, with heads padded to the size of the matrix unit.

      2 products of [L, D] with [D, M] forward; 5 for all gradients, or 3 and 4 in two kernels

  Args:
    kernel: The custom call; the first result of its operands' rank is `[..., N, L or M, D]`.
    operands: Its operands; queries and keys are the first two of the largest rank, with their last
      two axes in either order.
    mxu_size: Rows and columns of a matrix unit.

  Returns:
    FLOPs; 0 for another kernel.
  """
  products = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
  count = next((n for stem, n in products.items() if kernel.name.startswith(stem)), 0)
  rank = max((len(a.shape) for a in operands if a.dtype in FLOATS), default=0)
  if count == 4 and any(len(a.shape) > rank for a in kernel.results):
    count = 5  # the kernel also returns the queries' gradient of each group of keys
  inputs = [a.shape for a in operands if len(a.shape) == rank and a.dtype in FLOATS]
  results = [a.shape for a in kernel.results if len(a.shape) == rank]
  if not count or rank < 3 or len(inputs) < 2 or not results:
    return 0.0
  *leading, _, channels = results[0]
  heads = math.prod(leading)
  queries, keys = (math.prod(shape) / (heads * channels) for shape in inputs[:2])
  return count * 2.0 * heads * queries * keys * (-(-channels // mxu_size) * mxu_size)


def _flops(
  program: Program, instruction: Instruction, computation: dict[str, Instruction]
) -> float:
  """FLOPs of a matrix product or convolution, or of those inside a fusion."""
  if instruction.opcode == "fusion":
    fused = program.computations[instruction.called("calls")]
    return sum(_flops(program, inner, fused) for inner in fused.values())
  if instruction.opcode not in ("dot", "convolution"):
    return 0.0
  left, right = (computation[name].results[0].shape for name in instruction.operands[:2])
  result = math.prod(instruction.results[0].shape)
  if instruction.opcode == "dot":
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
    return 2.0 * result * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
  # Each element of the result is a sum over the window and the input features.
  labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes).group(1)
  outputs = right[labels.index("o")]
  return 2.0 * result * math.prod(right) / outputs * _window_fraction(instruction, left)


def _window_fraction(convolution: Instruction, image: tuple[int, ...]) -> float:
  """Fraction of a convolution's window positions on elements, not on padding or dilation.

  Gradients of convolutions are convolutions with large windows over much padding.
  """
  window = re.search(r"window=\{([^}]*)\}", convolution.attributes)
  if not window:
    return 1.0
  fields = dict(part.split("=", 1) for part in window.group(1).split() if "=" in part)
  labels, result = re.search(r"dim_labels=(\w+)_\w+->(\w+)", convolution.attributes).groups()
  sizes = [int(n) for n in fields["size"].split("x")]

  def field(name: str, default: str) -> list[str]:
    return fields[name].split("x") if name in fields else [default] * len(sizes)

  fraction = 1.0
  for axis, size in enumerate(sizes):
    length = image[labels.index(str(axis))]
    out = convolution.results[0].shape[result.index(str(axis))]
    low = int(field("pad", "0_0")[axis].split("_")[0])
    stride, dilation, base = (
      int(field(name, "1")[axis]) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    inside = 0
    for i in range(out):
      positions = (i * stride + k * dilation - low for k in range(size))
      inside += sum(x % base == 0 and 0 <= x // base < length for x in positions)
    fraction *= inside / (out * size)
  return fraction
