"""TPU slices by name: their chips, their shape, and devices to compile programs for."""

import dataclasses
import math
import re
from typing import Any

from dmpo_jax.errors import InputError, unknown

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Specification of a TPU chip.

  Attributes:
    peak_flops: Dense bfloat16 FLOP/s.
    hbm: Bytes of memory.
    hbm_bandwidth: Bytes/s between chip and memory.
    ici_bandwidth: Bytes/s that a chip sends over all its links to other chips.
    dcn_bandwidth: Bytes/s that a chip sends to other slices, over its host's network. v5e and v6e:
      a pod's 6.4 and 25.6 Tbit/s over 256 chips; v5p: 50 Gbit/s; v4: no published value, v5e's.
    mxu_size: Rows and columns of a matrix unit, to which kernels pad attention heads.
    axes: Number of axes of the torus.
    tensor_cores: Tensor cores per chip. Google's names of v4 and v5p slices count these.
    topology_options: Arguments of `get_topology_desc` beside the name.

  Source: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e: "key chip specifications".
  """

  peak_flops: float
  hbm: float
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float
  mxu_size: int
  axes: int
  tensor_cores: int = 1
  topology_options: tuple[tuple[str, Any], ...] = ()


MEGACORE = (
  ("chip_config_name", "megacore"),
)  # without it a device is one tensor core, half a chip

CHIPS = {
  "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 3.125e9, 128, 3, 2, MEGACORE),
  "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 3.125e9, 128, 2),
  "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, 128, 3, 2, MEGACORE),
  "v6e": Chip(918e12, 32 * GIB, 1640e9, 448e9, 12.5e9, 256, 2),
}
PATTERN = re.compile(r"(?:(\d+)x)?(v\d+[a-z]*)(?::(\d+(?:x\d+)*)|-(\d+))")

MOST_SLICES = 256  # Google's limit for one run


@dataclasses.dataclass(frozen=True)
class Slices:
  """Equal slices: each has the chips of one generation in a torus.

  Attributes:
    generation: "v4", "v5e", "v5p" or "v6e".
    shape: Chips of a slice along each axis.
    count: Number of slices.
  """

  generation: str
  shape: tuple[int, ...]
  count: int = 1

  @property
  def chip(self) -> Chip:
    """Specification of its chips."""
    return CHIPS[self.generation]

  @property
  def chips_per_slice(self) -> int:
    """Number of chips of a slice."""
    return math.prod(self.shape)

  @property
  def chips(self) -> int:
    """Number of chips of all slices."""
    return self.count * self.chips_per_slice

  @property
  def topology(self) -> str:
    """Generation and shape of a slice in chips: "v5e:4x4"."""
    return f"{self.generation}:{'x'.join(map(str, self.shape))}"

  @property
  def name(self) -> str:
    """Google's accelerator type, which counts tensor cores: "v5e-16", "v5p-32", "2xv5e-16"."""
    slices = f"{self.count}x" if self.count > 1 else ""
    return f"{slices}{self.generation}-{self.chips_per_slice * self.chip.tensor_cores}"


def parse(name: str) -> Slices:
  """Parses the name of a slice or of several.

  Args:
    name: Shape in chips ("v5e:4x4", "v5p:2x2x4"), or Google's accelerator type ("v5e-16", which
      counts chips; "v4-32" and "v5p-32", which count tensor cores: two a chip). A number and "x"
      before it make several slices: "2xv5e-16".

  Returns:
    `Slices`.

  Raises:
    InputError: The name cannot be parsed, the generation is unknown, or no slice has the shape.
  """
  match = PATTERN.fullmatch(name)
  if not match:
    raise InputError(
      f"topology {name!r} cannot be read; expected a generation and a shape in chips, v5e:4x4 or "
      "v5p:2x2x4, or an accelerator type, v5e-16 or v5p-32, after the number of several slices: "
      "2xv5e-16"
    )
  slices, generation, shape, count = match.groups()
  slices = int(slices or 1)
  if not 1 <= slices <= MOST_SLICES:
    raise InputError(
      f"topology {name!r} has {slices} slices, and must have 1 to {MOST_SLICES}: 2xv5e-16"
    )
  if generation not in CHIPS:
    raise unknown("TPU generation", generation, CHIPS)
  chip = CHIPS[generation]
  if shape:
    sides = tuple(int(side) for side in shape.split("x"))
    if len(sides) != chip.axes or min(sides) < 1:
      raise InputError(
        f"topology {name!r} has {len(sides)} sides; a {generation} slice has {chip.axes}, for "
        f"example {'x'.join(['4'] * chip.axes)}"
      )
    return Slices(generation, sides, slices)
  chips, rest = divmod(int(count), chip.tensor_cores)
  if rest or chips < 1 or chips & (chips - 1):
    counted = "tensor cores, two a chip" if chip.tensor_cores == 2 else "chips"
    raise InputError(
      f"accelerator type {name!r} counts {counted}, which must be a power of two; name another "
      f"slice by its shape, {generation}:{'x'.join(['4'] * chip.axes)}"
    )
  return Slices(generation, _near_cube(chips, chip.axes), slices)


def _near_cube(chips: int, axes: int) -> tuple[int, ...]:
  """Factors a power of two into sides within a factor of two, ascending, ones at the end."""
  sides = [1] * axes
  while math.prod(sides) < chips:
    sides[sides.index(min(sides))] *= 2
  return tuple(sorted(sides, key=lambda side: (side == 1, side)))


def devices(slices: Slices) -> list[Any]:
  """Devices to compile programs for slices, on any machine with libtpu.

  Args:
    slices: The slices.

  Returns:
    A device for each chip; `slice_index` says in which slice.

  Raises:
    InputError: libtpu is not installed, or has no such slice.
  """
  from jax.experimental import topologies

  chip = slices.chip
  options: dict[str, Any] = dict(chip.topology_options)
  if slices.chips_per_slice < 2**chip.axes // (2 if chip.axes == 3 else 1):
    # A host has four chips; a smaller slice is a part of one host.
    options["chips_per_host_bounds"] = (*slices.shape, *(1,) * (3 - len(slices.shape)))
  if slices.count > 1:
    options["num_slices"] = slices.count
  try:
    topology = topologies.get_topology_desc(
      platform="tpu", topology_name=slices.topology, **options
    )
  except Exception as error:  # libtpu has no exception class of its own
    raise InputError(_explain(slices, error)) from error
  return list(topology.devices)


def _explain(slices: Slices, error: Exception) -> str:
  try:
    import libtpu  # noqa: F401
  except ImportError:
    return (
      "compiling for a TPU needs libtpu, which is not installed: pip install 'dmpo-jax[tpu]' "
      "(a TPU is not needed)"
    )
  return f"libtpu knows no slice {slices.topology}: {str(error).splitlines()[0]}"
