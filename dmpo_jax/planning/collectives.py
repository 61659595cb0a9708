"""Collectives of a compiled TPU program: their traffic within a slice and between slices."""

import math
import re

from dmpo_jax.planning import hlo

# The forms of a send to other slices, as libtpu names them, and the collectives that they are.
BETWEEN_SLICES = {
  "ALL_GATHER": "all-gather",
  "ALL_REDUCE": "all-reduce",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}


def within(program: hlo.Program, devices: int) -> dict[str, tuple[int, float]]:
  """Number and traffic of the collectives of a step among the chips of a slice, by kind.

      bytes that a chip sends, in a group of g, with an operand of n bytes:
      all-gather (g - 1) n,   all-reduce 2 (g - 1)/g n,   reduce-scatter, all-to-all (g - 1)/g n,
      collective-permute n

  Args:
    program: Result of `hlo.parse`.
    devices: Number of devices of a slice that run the program.

  Returns:
    Kind -> (count, bytes).
  """
  totals: dict[str, tuple[int, float]] = {}

  def visit(
    instruction: hlo.Instruction, computation: dict[str, hlo.Instruction], count: int
  ) -> None:
    kind = instruction.opcode.removesuffix("-start")
    if instruction.opcode == "fusion":  # a fusion may run a collective beside a product
      fused = program.computations[instruction.called("calls")]
      for inner in fused.values():
        visit(inner, fused, count)
    if kind in hlo.COLLECTIVES:
      size = sum(map(_unpadded_bytes, hlo.operands_of(instruction, computation)))
      group = _group_size(instruction.attributes, devices)
      _add(totals, kind, count, size * _factor(kind, group))

  for instruction, computation, count in hlo.walk(program):
    visit(instruction, computation, count)
  return totals


def between(program: hlo.Program, slices: int) -> dict[str, tuple[int, float]]:
  """Number and traffic of the collectives of a step between slices, by kind.

  libtpu compiles a collective over several slices to one within each, and a transfer between the
  hosts of chips in the same place of each slice: send and recv, whose attributes name the kind.
  Bytes are those of `within`, in a group of all slices.

  Args:
    program: Result of `hlo.parse`.
    slices: Number of slices that run the program.

  Returns:
    Kind -> (count, bytes that a chip sends).
  """
  totals: dict[str, tuple[int, float]] = {}
  for instruction, computation, count in hlo.walk(program):
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if instruction.opcode == "send" and kind:
      size = sum(map(_unpadded_bytes, hlo.operands_of(instruction, computation)))
      kind = BETWEEN_SLICES.get(kind.group(1), kind.group(1).lower())
      _add(totals, kind, count, size * _factor(kind, slices))
  return totals


def _factor(kind: str, group: int) -> float:
  """Bytes that a chip sends for each byte of a collective's operand, in a group."""
  factors = {
    "all-gather": group - 1,
    "all-reduce": 2 * (group - 1) / group,
    "collective-permute": 1,
  }
  return factors.get(kind, (group - 1) / group)


def _add(totals: dict[str, tuple[int, float]], kind: str, count: int, size: float) -> None:
  total_count, total = totals.get(kind, (0, 0.0))
  totals[kind] = (total_count + count, total + count * size)


def _unpadded_bytes(array: hlo.Array) -> float:
  return math.prod(array.shape) * hlo.BYTES[array.dtype]


def _group_size(attributes: str, devices: int) -> int:
  """Number of devices in a group of a collective."""
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
