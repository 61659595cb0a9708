"""What a train step needs on a TPU slice, found by compiling it for the slice without a chip."""

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
from dmpo_jax.planning import hlo, tpu_slices
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.step import abstract_state, compile_step, make_optimizer, make_step

# Forms of a batch: images, cached latents, or cached latents and text embeddings.
INPUTS = ("images", "latents", "encoded")
SINGLE = ("image_captions", "digits")  # data sets of images without preference
# The compiler's two ways to say that a program does not fit.
FULL = re.compile(
  r"Used (?P<used>[\d.]+[KMGT]?) of (?P<limit>[\d.]+[KMGT]?) hbm"
  r"|\((?P<used_2>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<limit_2>[\d.]+[KMGT]?)\)"
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The shapes of a batch.

  Attributes:
    kind: Of `INPUTS`: "images" (encoders run in the step), "latents" (moments are stored, the text
      encoders run) or "encoded" (embeddings are stored too).
    size: Height and width of the images in pixels.
    images: Images of an example.
  """

  kind: str
  size: int
  images: int = 2


def inputs_of(config: ConfigDict, pipeline: TextToImage, kind: str = "", size: int = 0) -> Inputs:
  """The inputs of a config's data set, or other ones in their place.

  Args:
    config: A checked config.
    pipeline: The pipeline.
    kind: Of `INPUTS`; empty: the data set's.
    size: Side of the images in pixels; 0: the data set's, or else the pipeline's default.

  Returns:
    `Inputs`.

  Raises:
    InputError: The kind is not known, or neither data set nor pipeline has a size.
  """
  data = config.data
  if not kind and data.name.startswith("cached_latents"):
    kind = "encoded" if data.get("embeddings", True) else "latents"
  kind = kind or "images"
  if kind not in INPUTS:
    raise unknown("kind of inputs", kind, INPUTS)
  if kind != "images" and pipeline.autoencoder is None:
    raise InputError(f"inputs {kind!r} are an autoencoder's, and the pipeline has none")
  size = size or data.get("size", 0)
  if not size:
    try:
      size = max(pipeline.default_size())
    except InputError as error:
      raise InputError(f"nothing says how large images are ({error}); give --size") from error
  return Inputs(kind, size, 1 if data.name in SINGLE else 2)


def abstract_batch(
  pipeline: TextToImage,
  params: Params,
  inputs: Inputs,
  examples: int,
  place: jax.sharding.Sharding,
) -> Batch:
  """The shapes of a batch, sharded over devices.

  Args:
    pipeline: The pipeline.
    params: Shapes of the parameters of all components.
    inputs: The inputs of an example.
    examples: Number of examples.
    place: Sharding of the first axis.

  Returns:
    `Batch` of `jax.ShapeDtypeStruct`s, in the dtypes that the data sets have.
  """

  def array(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((examples, *shape), dtype, sharding=place)

  text = {name: array(x.shape, x.dtype) for name, x in pipeline.text_shapes.items()}
  image = (inputs.size, inputs.size, pipeline.image_channels)
  if inputs.kind == "encoded":
    embeddings = jax.eval_shape(pipeline.encode_text, params, text)
    text = {name: array(x.shape[1:], jnp.bfloat16) for name, x in embeddings.items()}
  batch = Batch(text, array((), jnp.uint32))
  if inputs.kind == "images":
    batch = batch._replace(pixels=array((inputs.images, *image), jnp.uint8))
  else:
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    posterior = jax.eval_shape(pipeline.posterior, params, pixels)
    shape = (inputs.images, 2, *posterior.mean.shape[1:])
    batch = batch._replace(latents=array(shape, jnp.bfloat16))
  if pipeline.uses_geometry:
    batch = batch._replace(geometry=array((6,), jnp.float32))
  return batch


def make(
  config: ConfigDict, pipeline: interop.Pipeline, of: tpu_slices.Slice, inputs: Inputs
) -> dict[str, Any]:
  """Compiles a config's train step for a slice, and reads off what it needs.

  Args:
    config: A checked config; its mesh must multiply out to the slice's chips.
    pipeline: Its configs; parameters are not looked at.
    of: The slice.
    inputs: What a batch holds.

  Returns:
    A plan, of plain numbers and strings: `describe` says what is in it.

  Raises:
    InputError: The mesh or the batch does not fit the slice, libtpu is absent, or the config or the
      pipeline is not supported.
  """
  mesh = sharding.make_mesh(config.num_devices, **config.mesh, devices=tpu_slices.devices(of))
  sharding.check_batch(mesh, config.batch_size, config.grad_accumulation_steps)
  functions = pipelines.build(pipeline)
  shapes = {name: models.abstract(pipeline.configs[name]) for name in _networks(functions)}
  batch = abstract_batch(functions, shapes, inputs, config.batch_size, sharding.batch(mesh))
  cached = {
    "images": (),
    "latents": (functions.autoencoder,),
    "encoded": (functions.autoencoder, *functions.text_encoders),
  }[inputs.kind]
  params = {name: tree for name, tree in shapes.items() if name not in cached}
  pipeline = dataclasses.replace(pipeline, params=params)
  trained, frozen, reference = setup.split_params(config, pipeline)
  optimizer = make_optimizer(config.optimizer)
  state = abstract_state(trained, optimizer, mesh, ema=config.ema_decay > 0)
  frozen, reference = (sharding.abstract(mesh, tree) for tree in (frozen, reference))
  objective = setup.make_objective(config, pipeline, mesh=mesh, attention="splash")
  if inputs.kind == "encoded" and objective.null_text is not None:
    null = {name: jnp.zeros(x.shape[1:]) for name, x in batch.text.items()}
    objective = objective._replace(null_text=null)
  step = make_step(
    objective,
    optimizer,
    ema_decay=config.ema_decay,
    grad_accumulation_steps=config.grad_accumulation_steps,
    constrain=functools.partial(sharding.constrain, mesh),
  )
  forwards = functions.flops(
    batch, trained=tuple(trained), reference=config.reference, lora=config.lora.rank > 0
  )
  plan: dict[str, Any] = {
    "slice": of.name,
    "topology": of.topology,
    "chips": mesh.size,
    "mesh": dict(mesh.shape),
    "examples_per_chip": config.batch_size / mesh.size,
    "grad_accumulation_steps": config.grad_accumulation_steps,
    "remat": config.remat,
    "inputs": dataclasses.asdict(inputs),
    "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    "available": of.chip.hbm,
    "bytes": {
      "parameters": _per_chip(state.params),
      "optimizer": _per_chip(state.opt_state),
      "average": _per_chip(state.ema),
      "reference": _per_chip(reference),
      "frozen": _per_chip(frozen),
      "batch": _per_chip(batch),
    },
    "model_flops": sum(forwards.values()) * config.batch_size / mesh.size,
  }
  arguments = (state, frozen, reference, batch)
  began = time.monotonic()
  # The mesh is told as shapes: nothing that is computed while tracing can run on these devices.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = compile_step(step, mesh, *arguments[:3]).lower(*arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    full = overflow(str(error))
    if full is None:
      raise
    return {**plan, "fits": False, "total": full[0], "available": full[1]}
  plan["compile_seconds"] = time.monotonic() - began
  return {**plan, "fits": True, **_costs(compiled, of, mesh.size, plan)}


def _networks(pipeline: TextToImage) -> tuple[str, ...]:
  """Names of the networks of a pipeline."""
  autoencoder = () if pipeline.autoencoder is None else (pipeline.autoencoder,)
  return (pipeline.denoiser, *autoencoder, *pipeline.text_encoders)


def overflow(message: str) -> tuple[float, float] | None:
  """What a program needs and what a chip has, from the compiler's error.

  Args:
    message: The error's text.

  Returns:
    Bytes (needed, there are), or None where the error is another one.
  """
  found = FULL.search(message)
  if not found:
    return None
  sizes = [text for text in found.groups() if text]
  used, limit = (float(text.rstrip("KMGT")) * UNITS[text.lstrip("0123456789.")] for text in sizes)
  return used, limit


def _per_chip(tree: Any) -> int:
  """Bytes of a tree that a chip holds."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _costs(compiled: Any, of: tpu_slices.Slice, devices: int, plan: Mapping) -> dict[str, Any]:
  """Entries of a plan that come from the compiled program."""
  memory, chip = compiled.memory_analysis(), of.chip
  # The state is donated: its new values take the memory of the old ones.
  live = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  program = hlo.parse(compiled.as_text())
  collectives = hlo.collectives(program, devices)
  seconds = dict.fromkeys(("matrix", "attention", "memory"), 0.0)
  operations = hlo.operations(program, chip.mxu_size)
  for operation in operations:
    compute = operation.flops / chip.peak_flops
    traffic = operation.bytes / chip.hbm_bandwidth
    kind = "attention" if operation.is_kernel else "matrix" if compute > traffic else "memory"
    seconds[kind] += operation.count * max(compute, traffic)
  on_chip = sum(seconds.values())
  seconds["collectives"] = sum(size for _, size in collectives.values()) / chip.ici_bandwidth
  ideal = plan["model_flops"] / chip.peak_flops
  compiler_estimate = compiled.cost_analysis().get("optimal_seconds", 0.0)
  overlapped = max(on_chip, seconds["collectives"])
  exposed = on_chip + seconds["collectives"]
  return {
    "total": live + memory.temp_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "program_flops": sum(each.count * each.flops for each in operations),
    "collectives": {kind: {"count": n, "bytes": size} for kind, (n, size) in collectives.items()},
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
