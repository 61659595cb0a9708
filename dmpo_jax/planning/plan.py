"""What a train step needs on a TPU slice, found by compiling it for the slice without a chip."""

import dataclasses
import functools
import importlib.metadata
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.models import flops
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.parallel import sharding
from dmpo_jax.planning import hlo, tpu_slices
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.step import abstract_state, compile_step, make_optimizer, make_step

# What a step is given of a pair, and what of the pipeline it does without then.
INPUTS = {
  "images": (),
  "latents": ("vae",),
  "encoded": ("vae", "text_encoder", "text_encoder_2"),
}
SINGLE = ("captioned", "digits")  # data sets of images without preference
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


def inputs_of(
  config: ConfigDict, unet: Mapping[str, Any], vae: Mapping[str, Any] | None, kind: str, size: int
) -> Inputs:
  """What a config's data set gives, or what is asked for instead.

  Args:
    config: A checked config.
    unet: The UNet's config.
    vae: The autoencoder's, or None.
    kind: Of `INPUTS`, or "": what the data set is.
    size: In pixels, or 0: the data set's, or else what the UNet was made for.

  Returns:
    `Inputs`.

  Raises:
    InputError: The kind is not known, or nobody says how large the images are.
  """
  data = config.data
  if not kind and data.name.startswith("encoded"):
    kind = "encoded" if data.get("embeddings", True) else "latents"
  kind = kind or "images"
  if kind not in INPUTS:
    raise unknown("kind of inputs", kind, INPUTS)
  if kind != "images" and vae is None:
    raise InputError(f"inputs {kind!r} are an autoencoder's, and the pipeline has none")
  if not size:
    size = data.get("size", 0) or unet.get("sample_size", 0) * _downscale(vae)
  if not size:
    raise InputError("neither the data set nor the UNet says how large images are; give --size")
  return Inputs(kind, size, 1 if data.name in SINGLE else 2)


def _downscale(vae: Mapping[str, Any] | None) -> int:
  return 1 if vae is None else 2 ** (len(vae_config.read(vae).block_out_channels) - 1)


def abstract_batch(
  pipeline: interop.Pipeline, inputs: Inputs, examples: int, place: jax.sharding.Sharding
) -> Batch:
  """The shapes of a batch, spread over devices.

  Args:
    pipeline: For its configs.
    inputs: What the batch holds of an example.
    examples: How many.
    place: Of the first axis.

  Returns:
    `Batch` of `jax.ShapeDtypeStruct`s, in the dtypes that the data sets have.
  """
  configs = pipeline.configs
  vae, unet = configs.get("vae"), unet_config.read(configs["unet"])
  texts = [clip_config.read(configs[n]) for n in ("text_encoder", "text_encoder_2") if n in configs]

  def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((examples, *shape), dtype, sharding=place)

  ids = [array(text.max_position_embeddings, dtype=jnp.int32) for text in texts]
  side = inputs.size
  if inputs.kind == "images":
    channels = unet.in_channels if vae is None else vae_config.read(vae).in_channels
    images = array(inputs.images, side, side, channels, dtype=jnp.uint8)
  else:
    side //= _downscale(vae)
    latents = vae_config.read(vae).latent_channels
    images = array(inputs.images, 2, side, side, latents, dtype=jnp.bfloat16)
  batch = Batch(images, ids[0], array(dtype=jnp.uint32), input_ids_2=ids[1] if ids[1:] else None)
  if unet.text_time is not None:
    batch = batch._replace(time_ids=array(6, dtype=jnp.float32))
  if inputs.kind != "encoded":
    return batch
  tokens = texts[0].max_position_embeddings
  embeddings = array(tokens, unet.cross_attention_dim, dtype=jnp.bfloat16)
  pooled = unet.text_time and array(unet.text_time.text, dtype=jnp.bfloat16)
  return batch._replace(embeddings=embeddings, pooled=pooled)


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
  sharding.check_batch(mesh, config.batch_size, config.accumulation)
  networks = [name for name in interop.pipeline.NETWORKS if name in pipeline.configs]
  run = [name for name in networks if name not in INPUTS[inputs.kind]]
  shapes = {name: models.abstract(pipeline.configs[name]) for name in run}
  pipeline = dataclasses.replace(pipeline, params=shapes)
  trained, frozen, reference = setup.split_params(config, pipeline)
  optimizer = make_optimizer(config.optimizer)
  state = abstract_state(trained, optimizer, mesh, ema=config.ema_decay > 0)
  frozen, reference = (sharding.abstract(mesh, tree) for tree in (frozen, reference))
  batch = abstract_batch(pipeline, inputs, config.batch_size, sharding.batch(mesh))
  objective = setup.make_objective(config, pipeline, mesh=mesh, attention="splash")
  if inputs.kind == "encoded" and objective.null_ids is not None:
    stored = {"encoder_hidden_states": batch.embeddings, "text_embeds": batch.pooled}
    null = {name: jnp.zeros(x.shape[1:]) for name, x in stored.items() if x is not None}
    objective = objective._replace(null_text=null)
  step = make_step(
    objective,
    optimizer,
    ema_decay=config.ema_decay,
    accumulation=config.accumulation,
    constrain=functools.partial(sharding.constrain, mesh),
  )
  forwards = flops.per_example(
    pipeline.configs,
    height=inputs.size,
    width=inputs.size,
    tokens=batch.input_ids.shape[1],
    images=inputs.images,
    trained=config.trained,
    reference=config.reference,
    lora=config.lora.rank > 0,
    cached=[name for name in networks if name not in run],
  )
  plan: dict[str, Any] = {
    "slice": of.name,
    "topology": of.topology,
    "chips": mesh.size,
    "mesh": dict(mesh.shape),
    "examples_per_chip": config.batch_size / mesh.size,
    "accumulation": config.accumulation,
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
