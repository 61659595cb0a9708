"""Sharding rules by shape on a mesh of `data` x `fsdp` devices.

Examples are sharded over all devices. Arrays that persist between steps (parameters, EMA, optimizer
state, frozen networks, the reference) are sharded over `fsdp` and replicated over `data`: each
device stores 1/fsdp of them and all-gathers a weight where it is used. The largest fsdp needs the
least memory, but arrays that it does not divide are replicated.

Several TPU slices, with a slower network between them, lie one after the other along `data`. The
gradients of a slice are summed inside it first, and each device passes on its share of the sums:
XLA makes that of the one sum over `data` (`planning/hlo.py` counts both networks).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dmpo_jax import models
from dmpo_jax.errors import InputError

AXES = ("data", "fsdp")
# Arrays of fewer elements (biases, norms) are replicated: their shards would be smaller than the
# overhead of gathering them.
SMALLEST = 2**14


def make_mesh(
  num_devices: int = 0,
  *,
  data: int = 0,
  fsdp: int = 1,
  slices: int = 0,
  devices: list[jax.Device] | None = None,
) -> Mesh:
  """A mesh with the axes "data" and "fsdp".

  Neighbouring devices share an fsdp group, so that all-gathers stay between near chips. Slices are
  sets of devices with a fast network of their own, one after the other along "data": an fsdp group
  lies within a slice, and only sums pass between slices.

  Args:
    num_devices: Number of devices, from the first on; 0: all.
    data: Size of "data" over all slices; 0: the number of devices divided by fsdp.
    fsdp: Size of "fsdp".
    slices: Number of slices; 0: that of the devices. TPUs know their slice; other devices are one
      slice, or as many equal groups of consecutive devices as this says.
    devices: Available devices; None: all of jax's default backend.

  Returns:
    The mesh, of AxisType.Auto.

  Raises:
    InputError: There are fewer devices, data x fsdp is not their number, or the slices are not
      those of the devices, differ in size, or are not divided by fsdp.
  """
  available = jax.devices() if devices is None else list(devices)
  count = num_devices or len(available)
  if count > len(available):
    raise InputError(f"config.num_devices is {count}, and there are {len(available)} devices")
  if count % fsdp or (data and data * fsdp != count):
    sizes = f"data {data} x fsdp {fsdp}" if data else f"fsdp {fsdp}"
    raise InputError(
      f"config.mesh of {sizes} does not multiply out to {count} devices; choose an fsdp that "
      f"divides {count}, and data = {count} / fsdp or 0"
    )
  groups = _slices(available[:count], slices)
  if (size := count // len(groups)) % fsdp:
    raise InputError(
      f"config.mesh.fsdp {fsdp} does not divide the {size} devices of a slice ({count} devices in "
      f"{len(groups)} slices); choose an fsdp that does, so that parameters are gathered within a "
      "slice"
    )
  types = (AxisType.Auto,) * 2
  shape = (count // fsdp, fsdp)
  if len(groups) == 1:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=groups[0])
  shape = (size // fsdp, fsdp)
  parts = [
    mesh_utils.create_device_mesh(shape, group, allow_split_physical_axes=True) for group in groups
  ]
  return Mesh(np.concatenate(parts), AXES, axis_types=types)


def _slices(devices: list[jax.Device], slices: int) -> list[list[jax.Device]]:
  """The devices of each slice, see `make_mesh`."""
  if devices[0].platform != "tpu":
    size, rest = divmod(len(devices), slices or 1)
    if rest:
      raise InputError(
        f"config.mesh.slices {slices} does not divide {len(devices)} devices; slices have one size"
      )
    return [devices[i : i + size] for i in range(0, len(devices), size)]
  groups: dict[int, list[jax.Device]] = {}
  for device in devices:
    groups.setdefault(getattr(device, "slice_index", 0), []).append(device)
  sizes = [len(groups[index]) for index in sorted(groups)]
  if slices and slices != len(sizes):
    raise InputError(
      f"config.mesh.slices is {slices}, and the {len(devices)} TPU devices lie in {len(sizes)} "
      f"slice{'s' if len(sizes) > 1 else ''}; set it to {len(sizes)}, or to 0 for what the devices "
      "say"
    )
  if len(set(sizes)) > 1:
    raise InputError(
      f"the slices have {sizes} devices, and all must have the same number; change "
      "config.num_devices, which takes the first devices"
    )
  return [groups[index] for index in sorted(groups)]


def spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
  """The sharding of an array that persists between steps: its largest divisible axis over "fsdp".

  Of equal axes it is the last one. Arrays of fewer than `SMALLEST` elements are replicated.

  Args:
    shape: Shape of the full array.
    fsdp: Size of the axis "fsdp".

  Returns:
    A PartitionSpec with "fsdp" at one axis, or an empty one.
  """
  divisible = [i for i, size in enumerate(shape) if size % fsdp == 0 and size >= fsdp]
  if fsdp == 1 or math.prod(shape) < SMALLEST or not divisible:
    return PartitionSpec()
  axis = max(divisible, key=lambda i: (shape[i], i))
  return PartitionSpec(*[None] * axis, "fsdp")


def shardings(mesh: Mesh, tree: Any) -> Any:
  """The sharding of each array of a tree that persists between steps, by its shape alone.

  Parameters and the optimizer's moments of them therefore have the same sharding.

  Args:
    mesh: From `make_mesh`.
    tree: Arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The tree with a NamedSharding for each.
  """
  fsdp = mesh.shape["fsdp"]
  return jax.tree.map(lambda x: NamedSharding(mesh, spec(tuple(x.shape), fsdp)), tree)


def abstract(mesh: Mesh, tree: Any) -> Any:
  """Shapes, dtypes and `shardings` of a tree, for the compilation of a step.

  Args:
    mesh: From `make_mesh`.
    tree: Arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The tree with a `jax.ShapeDtypeStruct` for each.
  """
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    tree,
    shardings(mesh, tree),
  )


def batch(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its first axis, the examples, over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that are replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, shardings: Any) -> Any:
  """The tree on the devices of all processes.

  Args:
    tree: Arrays on devices, or on the host, where every process has the full arrays.
    shardings: A sharding for each.

  Returns:
    The tree of jax.Arrays; an array that already has its sharding is returned itself.
  """

  def put_one(array: np.ndarray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(array, jax.Array):
      return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  return jax.tree.map(put_one, tree, shardings)


def placement(mesh: Mesh) -> models.Placement | None:
  """How networks run on the mesh: each device computes its examples and all-gathers weights.

  This is explicit (`jax.shard_map`), because the compiler's partitioner would sum the full gradient
  of each weight on every device. Here the gradient of a gathered weight is reduce-scattered in the
  compute dtype, and its shards are summed over "data" in the parameters' dtype.

  Examples that do not divide over all devices are sharded over the longest prefix of the mesh's
  axes that divides them, and replicated over the rest.

  Args:
    mesh: From `make_mesh`.

  Returns:
    The placement; None for a mesh of one device.
  """
  if mesh.size == 1:
    return None

  def shard_map(function: Callable) -> Callable:
    def on_mesh(params: Any, inputs: Any) -> Any:
      specs = jax.tree.map(lambda x: spec(tuple(x.shape), mesh.shape["fsdp"]), params)
      count = len(jax.tree.leaves(inputs)[0])
      examples = PartitionSpec(models.dividing_axes(mesh.shape, AXES, count))
      # check_vma would ask for a proof that gathered weights are equal on all devices.
      run = jax.shard_map(
        function, mesh=mesh, in_specs=(specs, examples), out_specs=examples, check_vma=False
      )
      return run(params, inputs)

    return on_mesh

  def all_gather(shard: jax.Array, full_shape: tuple[int, ...]) -> jax.Array:
    axes = spec(full_shape, mesh.shape["fsdp"])
    return jax.lax.all_gather(shard, "fsdp", axis=len(axes) - 1, tiled=True) if axes else shard

  return models.Placement(shard_map, all_gather)


def constrain(mesh: Mesh, tree: Any) -> Any:
  """The tree with the sharding constraints of `shardings`, inside a jit."""
  return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree))


def check_batch(mesh: Mesh, batch_size: int, grad_accumulation_steps: int) -> None:
  """Refuses a batch whose microbatches do not divide over the devices.

  Args:
    mesh: From `make_mesh`.
    batch_size: Examples in a step.
    grad_accumulation_steps: Microbatches of a step.

  Raises:
    InputError: A microbatch does not divide.
  """
  if batch_size % (grad_accumulation_steps * mesh.size):
    raise InputError(
      f"config.batch_size {batch_size} does not divide over {mesh.size} devices x "
      f"{grad_accumulation_steps} microbatches; make it a multiple of "
      f"{grad_accumulation_steps * mesh.size}, or change config.num_devices or "
      "config.grad_accumulation_steps"
    )
