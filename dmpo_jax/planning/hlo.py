"""Reading a compiled TPU program: its arithmetic, its memory traffic, and its collectives.

XLA's own cost analysis counts the body of a loop once and a Pallas kernel not at all. This reads
the text of the optimised program instead, with loops times their trips.
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
# What moves nothing by itself.
FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast"})
FREE |= {"after-all", "partition-id", "replica-id"}

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")
_LINE = re.compile(
  r"\s+(?:ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([a-z][a-z0-9\-]*)\((.*)", re.DOTALL
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of a program: its dtype, sizes, and bytes as it is laid out (tiles are padded)."""

  dtype: str
  shape: tuple[int, ...]
  bytes: float


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: Without the percent sign.
    opcode: Such as "fusion".
    results: The arrays it returns.
    operands: Names of what it reads.
    attributes: The text behind the operands.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  attributes: str

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found and found.group(1)


@dataclasses.dataclass(frozen=True)
class Program:
  """A program's computations by name, and the name of the one that is run."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


@dataclasses.dataclass(frozen=True)
class Operation:
  """What one instruction costs a chip in a step.

  Attributes:
    name: Of the instruction.
    times: How often it runs.
    flops: Of matrix products and convolutions, each time.
    bytes: Between chip and memory, each time: what it reads and writes in HBM.
    kernel: Whether it is a Pallas kernel, `flops` being those of `attention_flops`.
  """

  name: str
  times: int
  flops: float
  bytes: float
  kernel: bool


def parse(text: str) -> Program:
  """Reads `compiled.as_text()`.

  Args:
    text: The optimised program.

  Returns:
    `Program`.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current, pending = "", None, ""

  def finish() -> None:
    if pending and current is not None:
      found = _instruction(pending)
      computations[current][found.name] = found

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
    else:  # attributes of a kernel go over several lines
      pending += line
  return Program(computations, entry)


def _instruction(line: str) -> Instruction:
  name, shape, opcode, rest = _LINE.match(line).groups()
  end = _closing(rest)
  operands = tuple(_NAME.findall(rest[:end])) if opcode not in ("parameter", "constant") else ()
  attributes = rest[end + 1 :] if opcode != "constant" else rest
  return Instruction(name, opcode, tuple(_arrays(shape)), operands, attributes)


def _closing(text: str) -> int:
  """Where the parenthesis closes that was opened before the text."""
  depth = 1
  for place, sign in enumerate(text):
    depth += (sign == "(") - (sign == ")")
    if depth == 0:
      return place
  return len(text)


def _arrays(shape: str) -> Iterator[Array]:
  for dtype, sizes, order, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
    if dtype not in BYTES:
      continue
    dims = tuple(int(size) for size in sizes.split(",") if size)
    yield Array(dtype, dims, _laid_out(dims, order, layout) * BYTES[dtype])


def _laid_out(dims: tuple[int, ...], order: str, layout: str) -> int:
  """Elements of an array in HBM: its minor axes are padded to whole tiles; 0 in on-chip memory."""
  if re.search(r"S\([1-9]", layout):
    return 0
  tile = re.search(r"T\(([\d,]+)\)", layout)
  padded = [dims[int(axis)] for axis in order.split(",")] if order else list(dims[::-1])
  for i, side in enumerate(reversed(tile.group(1).split(",")) if tile and padded else ()):
    if i < len(padded):
      padded[i] = -(-padded[i] // int(side)) * int(side)
  return math.prod(padded)


def walk(program: Program) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
  """Every instruction that is run as one, with its computation and how often it runs.

  Loops and calls are gone into, fusions are not: they are one operation. Of a conditional all
  branches are counted.
  """

  def visit(name: str, times: int):
    here = program.computations[name]
    for instruction in here.values():
      opcode = instruction.opcode
      if opcode == "while":
        yield from visit(instruction.called("body"), times * trips(program, instruction))
      elif opcode in ("call", "async-start"):
        inner = instruction.called("to_apply") or instruction.called("calls")
        yield from visit(inner, times)
      elif opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        names = _NAME.findall(listed.group(1)) if listed else []
        pair = (instruction.called("true_computation"), instruction.called("false_computation"))
        for inner in names or [name for name in pair if name]:
          yield from visit(inner, times)
      else:
        yield instruction, here, times

  yield from visit(program.entry, 1)


def trips(program: Program, loop: Instruction) -> int:
  """How often a loop runs: as the compiler says, or the number its condition compares with.

  A loop of which neither tells counts once.
  """
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known.group(1))
  inside = program.computations[loop.called("condition")].values()
  compared = {o for i in inside if "direction=LT" in i.attributes for o in i.operands}
  limits = [
    re.match(r"(\d+)\)", i.attributes)
    for i in inside
    if i.opcode == "constant" and i.name in compared
  ]
  return max([int(limit.group(1)) for limit in limits if limit], default=1)


def operations(program: Program, unit: int = 128) -> list[Operation]:
  """What each instruction of a program costs, but for the collectives.

  Args:
    program: From `parse`.
    unit: Side of a matrix unit.

  Returns:
    `Operation`s of at least one FLOP or byte.
  """
  found = []
  for instruction, here, times in walk(program):
    if instruction.opcode in FREE or instruction.opcode.startswith(COLLECTIVES):
      continue
    read = [a for name in instruction.operands if name in here for a in here[name].results]
    kernel = 'custom_call_target="tpu_custom_call"' in instruction.attributes
    if instruction.opcode == "custom-call" and not kernel:
      continue  # hints to the compiler
    flops = (
      attention_flops(instruction, read, unit) if kernel else _flops(program, instruction, here)
    )
    moved = sum(a.bytes for a in (*read, *instruction.results))
    if flops or moved:
      found.append(Operation(instruction.name, times, flops, moved, kernel))
  return found


def attention_flops(kernel: Instruction, read: list[Array], unit: int) -> float:
  """FLOPs of a splash attention kernel as a matrix unit does them: heads padded to its side.

      2 products of [L, D] with [D, M] forward; 5 for all gradients, or 3 and 4 apart

  Args:
    kernel: The custom call; the first result of its operands' rank is `[..., N, L or M, D]`.
    read: Its operands; queries and keys are the first two of the largest rank, with their last two
      axes in either order.
    unit: Side of a matrix unit.

  Returns:
    FLOPs; 0 for another kernel.
  """
  products = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
  count = next((n for stem, n in products.items() if kernel.name.startswith(stem)), 0)
  rank = max((len(a.shape) for a in read if a.dtype in FLOATS), default=0)
  if count == 4 and any(len(a.shape) > rank for a in kernel.results):
    count = 5  # it also returns a part of the queries' gradient for each group of keys
  inputs = [a.shape for a in read if len(a.shape) == rank and a.dtype in FLOATS]
  results = [a.shape for a in kernel.results if len(a.shape) == rank]
  if not count or rank < 3 or len(inputs) < 2 or not results:
    return 0.0
  *leading, _, channels = results[0]
  heads = math.prod(leading)
  queries, keys = (math.prod(shape) / (heads * channels) for shape in inputs[:2])
  return count * 2.0 * heads * queries * keys * (-(-channels // unit) * unit)


def _flops(program: Program, instruction: Instruction, here: dict[str, Instruction]) -> float:
  """FLOPs of a product or convolution, or of those inside a fusion."""
  if instruction.opcode == "fusion":
    inner = program.computations[instruction.called("calls")]
    return sum(_flops(program, each, inner) for each in inner.values())
  if instruction.opcode not in ("dot", "convolution"):
    return 0.0
  left, right = (here[name].results[0].shape for name in instruction.operands[:2])
  result = math.prod(instruction.results[0].shape)
  if instruction.opcode == "dot":
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
    return 2.0 * result * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
  # Each number of the result is a sum over the window and the kernel's input features.
  labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes).group(1)
  outputs = right[labels.index("o")]
  return 2.0 * result * math.prod(right) / outputs * _inside(instruction, left)


def _inside(convolution: Instruction, image: tuple[int, ...]) -> float:
  """The share of a convolution's window that falls on numbers instead of padding or dilation.

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

  share = 1.0
  for axis, size in enumerate(sizes):
    length = image[labels.index(str(axis))]
    out = convolution.results[0].shape[result.index(str(axis))]
    low = int(field("pad", "0_0")[axis].split("_")[0])
    stride, dilation, base = (
      int(field(name, "1")[axis]) for name in ("stride", "rhs_dilate", "lhs_dilate")
    )
    hit = 0
    for i in range(out):
      places = (i * stride + k * dilation - low for k in range(size))
      hit += sum(place % base == 0 and 0 <= place // base < length for place in places)
    share *= hit / (out * size)
  return share


def collectives(program: Program, devices: int) -> dict[str, tuple[int, float]]:
  """The collectives of a step by kind.

      bytes sent by a chip, of a group of g and an operand of n bytes:
      all-gather (g - 1) n,   all-reduce 2 (g - 1)/g n,   reduce-scatter, all-to-all (g - 1)/g n,
      collective-permute n

  Args:
    program: From `parse`.
    devices: How many run it.

  Returns:
    Kind -> (how many, bytes).
  """
  found: dict[str, tuple[int, float]] = {}

  def visit(instruction: Instruction, here: dict[str, Instruction], times: int) -> None:
    kind = instruction.opcode.removesuffix("-start")
    if instruction.opcode == "fusion":  # the compiler runs some beside a product, as one fusion
      inner = program.computations[instruction.called("calls")]
      for each in inner.values():
        visit(each, inner, times)
    if kind not in COLLECTIVES:
      return
    size = sum(
      _bare(a) for name in instruction.operands if name in here for a in here[name].results
    )
    group = _group(instruction.attributes, devices)
    share = {
      "all-gather": group - 1,
      "all-reduce": 2 * (group - 1) / group,
      "collective-permute": 1,
    }.get(kind, (group - 1) / group)
    count, total = found.get(kind, (0, 0.0))
    found[kind] = (count + times, total + times * share * size)

  for instruction, here, times in walk(program):
    visit(instruction, here, times)
  return found


def _bare(array: Array) -> float:
  return math.prod(array.shape) * BYTES[array.dtype]


def _group(attributes: str, devices: int) -> int:
  """How many devices take part in a collective."""
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  if listed:
    return listed.group(1).count(",") + 1
  counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
  if counted:
    return int(counted.group(1))
  named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
  if named:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named.group(2)))
  return devices
