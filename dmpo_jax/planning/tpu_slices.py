"""TPU slices by name: their chips, their shape, and the devices that a program is compiled for."""

import dataclasses
import math
import re
from typing import Any

from dmpo_jax.errors import InputError, unknown

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip of a generation has.

  Attributes:
    peak: Dense bfloat16 FLOP/s.
    hbm: Bytes of memory.
    bandwidth: Bytes/s between chip and memory.
    links: Bytes/s that leave a chip over all its links to other chips.
    unit: Side of a matrix unit, to which a kernel's heads are padded.
    axes: Of the torus.
    cores: Tensor cores per chip, in which Google's names of v4 and v5p slices count.
    options: Arguments of `get_topology_desc` beside the name.

  Source: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e: "key chip specifications".
  """

  peak: float
  hbm: float
  bandwidth: float
  links: float
  unit: int
  axes: int
  cores: int = 1
  options: tuple[tuple[str, Any], ...] = ()


MEGACORE = (("chip_config_name", "megacore"),)  # else a device is half a chip

CHIPS = {
  "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 128, 3, 2, MEGACORE),
  "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 128, 2),
  "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 128, 3, 2, MEGACORE),
  "v6e": Chip(918e12, 32 * GIB, 1640e9, 448e9, 256, 2),
}
PATTERN = re.compile(r"(v\d+[a-z]*)(?::(\d+(?:x\d+)*)|-(\d+))")


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips of one generation in a torus.

  Attributes:
    generation: "v4", "v5e", "v5p" or "v6e".
    shape: Chips along each axis.
  """

  generation: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """What its chips have."""
    return CHIPS[self.generation]

  @property
  def chips(self) -> int:
    """How many there are."""
    return math.prod(self.shape)

  @property
  def topology(self) -> str:
    """Generation and shape: "v5e:4x4"."""
    return f"{self.generation}:{'x'.join(map(str, self.shape))}"

  @property
  def name(self) -> str:
    """As Google names the accelerator type, in tensor cores: "v5e-16", "v5p-32"."""
    return f"{self.generation}-{self.chips * self.chip.cores}"


def parse(name: str) -> Slice:
  """The slice of a name.

  Args:
    name: Shape in chips ("v5e:4x4", "v5p:2x2x4"), or Google's accelerator type ("v5e-16", which
      counts chips; "v4-32" and "v5p-32", which count tensor cores: two a chip).

  Returns:
    `Slice`.

  Raises:
    InputError: The name cannot be read, the generation is not known, or the shape is no slice's.
  """
  match = PATTERN.fullmatch(name)
  if not match:
    raise InputError(
      f"topology {name!r} cannot be read; expected a generation and a shape in chips, v5e:4x4 or "
      "v5p:2x2x4, or an accelerator type, v5e-16 or v5p-32"
    )
  generation, shape, count = match.groups()
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
    return Slice(generation, sides)
  chips, rest = divmod(int(count), chip.cores)
  if rest or chips < 1 or chips & (chips - 1):
    counted = "tensor cores, two a chip" if chip.cores == 2 else "chips"
    raise InputError(
      f"accelerator type {name!r} counts {counted}, which must be a power of two; name another "
      f"slice by its shape, {generation}:{'x'.join(['4'] * chip.axes)}"
    )
  return Slice(generation, _near_cube(chips, chip.axes))


def _near_cube(chips: int, axes: int) -> tuple[int, ...]:
  """A power of two as sides that differ by a factor of two at most, the longest last, then ones."""
  sides = [1] * axes
  while math.prod(sides) < chips:
    sides[sides.index(min(sides))] *= 2
  return tuple(sorted(sides, key=lambda side: (side == 1, side)))


def devices(of: Slice) -> list[Any]:
  """Stand-ins for a slice's chips, which programs can be compiled for on any machine with libtpu.

  Args:
    of: The slice.

  Returns:
    A device for each chip.

  Raises:
    InputError: libtpu is not installed, or does not know such a slice.
  """
  from jax.experimental import topologies

  options: dict[str, Any] = dict(of.chip.options)
  if of.chips < 2**of.chip.axes // (2 if of.chip.axes == 3 else 1):
    # Hosts have four chips; a slice of fewer is a part of one host.
    options["chips_per_host_bounds"] = (*of.shape, *(1,) * (3 - len(of.shape)))
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=of.topology, **options
    ).devices
  except Exception as error:  # libtpu has no class of its own for any of these
    raise InputError(_explain(of, error)) from error
  return list(found)


def _explain(of: Slice, error: Exception) -> str:
  try:
    import libtpu  # noqa: F401
  except ImportError:
    return (
      "compiling for a TPU needs libtpu, which is not installed: pip install 'dmpo-jax[tpu]' "
      "(a TPU is not needed)"
    )
  return f"libtpu knows no slice {of.topology}: {str(error).splitlines()[0]}"
