"""Plans of a train step: its memory, FLOPs and time on a TPU slice, compiled without a TPU."""

import dataclasses
import functools
import importlib.metadata
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmpo_jax import interop, models, pipelines
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.parallel import sharding
from dmpo_jax.pipelines import Params, TextToImage
from dmpo_jax.planning import collectives, hlo, tpu_slices
from dmpo_jax.training import reference as references
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import abstract_state, compile_step, make_step

# Forms of a batch: images, cached latents, or cached latents and text embeddings.
INPUTS = ("images", "latents", "latents_and_embeddings")
RENAMED_INPUTS = {"encoded": "latents_and_embeddings"}
# Data sets of single images; all others have pairs.
SINGLE_IMAGE_DATASETS = ("image_captions", "digits")
# The two forms of the compiler's error for a program that does not fit into memory.
OUT_OF_MEMORY = re.compile(
  r"Used (?P<used>[\d.]+[KMGT]?) of (?P<limit>[\d.]+[KMGT]?) hbm"
  r"|\((?P<used_2>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<limit_2>[\d.]+[KMGT]?)\)"
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Form and size of the examples in a batch.

  Attributes:
    kind: One of `INPUTS`: "images" (the step runs all encoders), "latents" (the step runs the text
      encoders) or "latents_and_embeddings" (the step runs no encoder).
    size: Height and width of the images in pixels.
    images: Number of images of an example: 2 for pairs, 1 for single images.
  """

  kind: str
  size: int
  images: int = 2


def inputs_from_config(
  config: ConfigDict, pipeline: TextToImage, kind: str = "", size: int = 0
) -> Inputs:
  """Returns the inputs of a config's data set.

  Args:
    config: A checked config.
    pipeline: The pipeline.
    kind: One of `INPUTS`, in place of the data set's; empty: the data set's.
    size: Height and width of the images in pixels, in place of the data set's; 0: the data set's
      or, if it has none, the pipeline's default.

  Returns:
    `Inputs`.

  Raises:
    InputError: The kind is unknown or does not fit the pipeline, or neither data set nor pipeline
      has a size.
  """
  data = config.data
  if kind in RENAMED_INPUTS:
    raise InputError(f"inputs {kind!r} are called {RENAMED_INPUTS[kind]!r} now")
  if not kind and data.name.startswith("cached_latents"):
    kind = "latents_and_embeddings" if data.get("embeddings", True) else "latents"
  kind = kind or "images"
  if kind not in INPUTS:
    raise unknown("kind of inputs", kind, INPUTS)
  if kind != "images" and pipeline.autoencoder is None:
    raise InputError(f"inputs {kind!r} need an autoencoder, and the pipeline has none")
  size = size or data.get("size", 0)
  if not size:
    try:
      size = max(pipeline.default_size())
    except InputError as error:
      raise InputError(f"the size of the images is unknown ({error}); give --size") from error
  return Inputs(kind, size, 1 if data.name in SINGLE_IMAGE_DATASETS else 2)


def abstract_batch(
  pipeline: TextToImage,
  params: Params,
  inputs: Inputs,
  examples: int,
  batch_sharding: jax.sharding.Sharding,
) -> Batch:
  """Returns the shapes, dtypes and shardings of a batch.

  Args:
    pipeline: The pipeline.
    params: Shapes of the parameters of all components.
    inputs: Form and size of the examples.
    examples: Number of examples.
    batch_sharding: Sharding of the first axis.

  Returns:
    `Batch` of `jax.ShapeDtypeStruct`s, in the dtypes that the data sets have.
  """

  def array(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((examples, *shape), dtype, sharding=batch_sharding)

  text = {name: array(x.shape, x.dtype) for name, x in pipeline.text_shapes.items()}
  image = (inputs.size, inputs.size, pipeline.image_channels)
  if inputs.kind == "latents_and_embeddings":
    embeddings = jax.eval_shape(pipeline.encode_text, params, text)
    text = {name: array(x.shape[1:], jnp.bfloat16) for name, x in embeddings.items()}
  batch = Batch(text, array((), jnp.uint32))
  edits = pipeline.encode_source is not None
  if inputs.kind == "images":
    batch = batch._replace(pixels=array((inputs.images, *image), jnp.uint8))
    if edits:
      batch = batch._replace(source=array(image, jnp.uint8))
  else:
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    posterior = jax.eval_shape(pipeline.posterior, params, pixels)
    shape = (inputs.images, 2, *posterior.mean.shape[1:])
    batch = batch._replace(latents=array(shape, jnp.bfloat16))
    if edits:
      batch = batch._replace(source_latents=array(shape[2:], jnp.bfloat16))
  if pipeline.uses_geometry:
    batch = batch._replace(geometry=array((6,), jnp.float32))
  return batch


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
    per chip and step and, if the program fits, "temporaries", "program_flops", "collectives"
    within a slice and "between_slices", "seconds" and "mfu".

  Raises:
    InputError: The mesh or the batch does not fit the slice, libtpu is not installed, or the config
      or the pipeline is not supported.
  """
  mesh = sharding.make_mesh(config.num_devices, **config.mesh, devices=tpu_slices.devices(slices))
  sharding.check_batch(mesh, config.batch_size, config.grad_accumulation_steps)
  functions = pipelines.build(pipeline)
  shapes = {name: models.abstract(pipeline.configs[name]) for name in _networks(functions)}
  batch = abstract_batch(functions, shapes, inputs, config.batch_size, sharding.batch(mesh))
  cached = _cached_components(functions, inputs.kind)
  params = {name: tree for name, tree in shapes.items() if name not in cached}
  pipeline = dataclasses.replace(pipeline, params=params)
  trained, frozen, reference = setup.split_params(config, pipeline)
  optimizer = make_optimizer(config.optimizer)
  update = references.from_config(config.reference)
  state = abstract_state(trained, optimizer, mesh, ema=config.ema_decay > 0, reference=update.moves)
  frozen, reference = (sharding.abstract(mesh, tree) for tree in (frozen, reference))
  objective = setup.make_objective(config, pipeline, mesh=mesh, attention="splash")
  objective = objective._replace(starts_at_reference=True)
  if inputs.kind == "latents_and_embeddings" and objective.null_text is not None:
    # The embedding of the empty caption comes from the cache, which a plan does not have.
    null = {name: jnp.zeros(x.shape[1:]) for name, x in batch.text.items()}
    objective = objective._replace(null_text=null)
  step = make_step(
    objective,
    optimizer,
    ema_decay=config.ema_decay,
    reference_update=update,
    grad_accumulation_steps=config.grad_accumulation_steps,
    constrain=functools.partial(sharding.constrain, mesh),
  )
  example_flops = functions.flops(
    batch,
    trained=tuple(trained),
    reference=setup.uses_reference(config),
    lora=config.lora.rank > 0,
  )
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
      "reference": _bytes_per_chip(state.reference if update.moves else reference),
      "frozen": _bytes_per_chip(frozen),
      "batch": _bytes_per_chip(batch),
    },
    "model_flops": sum(example_flops.values()) * config.batch_size / mesh.size,
  }
  arguments = (state, frozen, reference, batch)
  start = time.monotonic()
  # An abstract mesh, because nothing may be computed on these devices while tracing.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = compile_step(step, mesh, *arguments[:3]).lower(*arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    memory = parse_out_of_memory(str(error))
    if memory is None:
      raise
    return {**plan, "fits": False, "total": memory[0], "available": memory[1]}
  plan["compile_seconds"] = time.monotonic() - start
  return {**plan, "fits": True, **_costs(compiled, slices.chip, plan)}


def _networks(pipeline: TextToImage) -> tuple[str, ...]:
  """Names of the networks of a pipeline."""
  autoencoder = () if pipeline.autoencoder is None else (pipeline.autoencoder,)
  return (pipeline.denoiser, *autoencoder, *pipeline.text_encoders)


def _cached_components(pipeline: TextToImage, kind: str) -> tuple[str | None, ...]:
  """Names of the networks that a step does not run, by the kind of its inputs."""
  if kind == "images":
    return ()
  return (pipeline.autoencoder, *(pipeline.text_encoders if kind != "latents" else ()))


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
