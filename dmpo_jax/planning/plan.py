"""Plans of a train step: its memory, FLOPs and time on a TPU slice, compiled without a TPU."""

import dataclasses
import importlib.metadata
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from dmpo_jax import interop
from dmpo_jax.parallel import sharding
from dmpo_jax.planning import collectives, hlo, tpu_slices, train_step
from dmpo_jax.planning.inputs import Inputs

# The two forms of the compiler's error for a program that does not fit into memory.
OUT_OF_MEMORY = re.compile(
  r"Used (?P<used>[\d.]+[KMGT]?) of (?P<limit>[\d.]+[KMGT]?) hbm"
  r"|\((?P<used_2>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<limit_2>[\d.]+[KMGT]?)\)"
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def plan_train_step(
  config: ConfigDict, pipeline: interop.Pipeline, slices: tpu_slices.Slices, inputs: Inputs
) -> dict[str, Any]:
  """Compiles a config's train step for TPU slices and returns its memory, FLOPs and time.

  Args:
    config: A checked config; the product of its mesh must be the number of chips.
    pipeline: The pipeline; its parameters are not used.
    slices: The slices.
    inputs: Form and size of the examples.

  Returns:
    A plan in JSON: "fits", "total" and "available" bytes of a chip, "bytes" by kind, "model_flops"
    per chip and step, "sampling" (see `sampling_cost`) and, if the program fits, "temporaries",
    "program_flops", "collectives" within a slice and "between_slices", "seconds" and "mfu".

  Raises:
    InputError: The mesh or the batch does not fit the slice, libtpu is not installed, or the config
      or the pipeline is not supported.
  """
  mesh = sharding.make_mesh(config.num_devices, **config.mesh, devices=tpu_slices.devices(slices))
  step = train_step.abstract(config, pipeline, mesh, inputs, attention="splash")
  state, frozen, reference, batch = step.arguments
  plan: dict[str, Any] = {
    "slice": slices.name,
    "slices": len({getattr(device, "slice_index", 0) for device in mesh.devices.flat}),
    "topology": slices.topology,
    "chips": mesh.size,
    "mesh": dict(mesh.shape),
    "examples_per_chip": config.batch_size / mesh.size,
    "grad_accumulation_steps": config.grad_accumulation_steps,
    "remat": config.remat,
    "inputs": dataclasses.asdict(inputs),
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    "available": slices.chip.hbm,
    "bytes": {
      "parameters": _bytes_per_chip(state.params),
      "optimizer": _bytes_per_chip(state.opt_state),
      "ema": _bytes_per_chip(state.ema),
      "reference": _bytes_per_chip(state.reference if step.moves_reference else reference),
      "frozen": _bytes_per_chip(frozen),
      "batch": _bytes_per_chip(batch),
    },
    "model_flops": step.example_flops * config.batch_size / mesh.size,
    "sampling": step.sampling,
  }
  start = time.monotonic()
  # An abstract mesh, because nothing may be computed on these devices while tracing.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = step.function.lower(*step.arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    memory = parse_out_of_memory(str(error))
    if memory is None:
      raise
    return {**plan, "fits": False, "total": memory[0], "available": memory[1]}
  plan["compile_seconds"] = time.monotonic() - start
  return {**plan, "fits": True, **_costs(compiled, slices.chip, plan)}


def parse_out_of_memory(message: str) -> tuple[float, float] | None:
  """Parses the compiler's error for a program that does not fit into memory.

  Args:
    message: Text of the error.

  Returns:
    Bytes (needed, available), or None if the error has another cause.
  """
  match = OUT_OF_MEMORY.search(message)
  if not match:
    return None
  sizes = [text for text in match.groups() if text]
  used, limit = (float(text.rstrip("KMGT")) * UNITS[text.lstrip("0123456789.")] for text in sizes)
  return used, limit


def _bytes_per_chip(tree: Any) -> int:
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _costs(compiled: Any, chip: tpu_slices.Chip, plan: Mapping[str, Any]) -> dict[str, Any]:
  """Entries of a plan that come from the compiled program."""
  memory = compiled.memory_analysis()
  # The state is donated: its new values take the memory of the old ones.
  live = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  program = hlo.parse(compiled.as_text())
  within = collectives.within(program, plan["chips"] // plan["slices"])
  between = collectives.between(program, plan["slices"])
  seconds = dict.fromkeys(("matrix", "attention", "memory"), 0.0)
  operations = hlo.operations(program, chip.mxu_size)
  for operation in operations:
    compute = operation.flops / chip.peak_flops
    traffic = operation.bytes / chip.hbm_bandwidth
    kind = "attention" if operation.is_kernel else "matrix" if compute > traffic else "memory"
    seconds[kind] += operation.count * max(compute, traffic)
  on_chip = sum(seconds.values())
  seconds["collectives"] = sum(size for _, size in within.values()) / chip.ici_bandwidth
  seconds["between_slices"] = sum(size for _, size in between.values()) / chip.dcn_bandwidth
  ideal = plan["model_flops"] / chip.peak_flops
  compiler_estimate = compiled.cost_analysis().get("optimal_seconds", 0.0)
  overlapped = max(on_chip, seconds["collectives"], seconds["between_slices"])
  exposed = on_chip + seconds["collectives"] + seconds["between_slices"]
  return {
    "total": live + memory.temp_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "program_flops": sum(each.count * each.flops for each in operations),
    "collectives": _by_kind(within),
    "between_slices": _by_kind(between),
    "dcn_bandwidth": chip.dcn_bandwidth,
    "seconds": {
      **seconds,
      "step": overlapped,
      "step_exposed": exposed,
      "compiler": compiler_estimate,
    },
    "mfu": {
      "step": ideal / overlapped,
      "step_exposed": ideal / exposed,
      "compiler": ideal / compiler_estimate if compiler_estimate > 0 else None,
    },
  }


def _by_kind(traffic: Mapping[str, tuple[int, float]]) -> dict[str, dict[str, float]]:
  return {kind: {"count": n, "bytes": size} for kind, (n, size) in traffic.items()}
