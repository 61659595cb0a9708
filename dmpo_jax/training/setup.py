"""The parts of a run that its config describes: examples, pipeline, objective, parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import data, interop, losses, models, pipelines
from dmpo_jax.common import choose
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.parallel import sharding
from dmpo_jax.pipelines import Params, Text, TextToImage, latent_encoders
from dmpo_jax.training import reference as references
from dmpo_jax.training.batch import EditDropout
from dmpo_jax.training.objective import Loss, Objective, adapt, replace
from dmpo_jax.training.step import make_step

Data = data.Examples | data.FolderPairs | data.CachedLatents


def load_examples(config: ConfigDict) -> Data:
  """The examples that the config's `data` section names."""
  build, options = choose.select("data set", config.data, data.DATASETS, renamed=data.RENAMED)
  return build(**options)


def make_loaders(
  config: ConfigDict, pipeline: interop.Pipeline, examples: Data
) -> Callable[..., data.Loader | data.FolderLoader]:
  """The function that makes loaders of a run's batches.

  All processes call this if the pipeline's parameters are sharded over several.

  Args:
    config: A checked config.
    pipeline: The pipeline that the run starts from, with its parameters.
    examples: The data set.

  Returns:
    `(process_index=0, process_count=1)` -> the loader of one of so many equal parts of each batch.

  Raises:
    InputError: The data set does not fit the pipeline; or, from the function, the batch size.
  """
  functions = pipelines.build(pipeline)
  _check_sources(functions, examples)
  if isinstance(examples, data.CachedLatents):
    latent_encoders.check(examples, pipeline, trained_components(config, functions))
    return functools.partial(examples.loader, batch_size=config.batch_size, seed=config.seed)
  return functools.partial(
    examples.loader,
    functions.tokenize,
    channels=functions.image_channels,
    batch_size=config.batch_size,
    seed=config.seed,
  )


def _check_sources(pipeline: TextToImage, examples: Data) -> None:
  """Raises unless the examples have source images where the pipeline edits images, and only there.

  A data set that reads pairs as text to image has `drop_sources`.
  """
  edits = pipeline.encode_source is not None
  if edits and not examples.has_sources:
    raise InputError(
      "the pipeline edits images (its UNet reads the source beside the noisy image), and the "
      "examples of config.data have no source images; convert pairs with a column condition, or "
      "take a text-to-image pipeline"
    )
  if examples.has_sources and not edits:
    raise InputError(
      "the examples of config.data are edits of source images, and the pipeline makes images from "
      "text alone; take an editing pipeline, make one with config.widen=True, or set "
      "config.data.drop_sources=True"
    )


def load_pipeline(
  config: ConfigDict,
  captions: list[str],
  *,
  shardings: Callable[[Params], Params] | None = None,
) -> interop.Pipeline:
  """The pipeline a run starts from: the one the config names, or new random networks.

  Args:
    config: A checked config; its pipeline is a folder or the "owner/name" of one on the hub.
    captions: The captions of the data; a new pipeline's vocabulary is made of their words.
    shardings: `(parameters) -> shardings` of one network; each process then reads and holds what
      its devices do. None: numpy arrays.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: The pipeline cannot be read, or the description of new networks is incomplete.
  """
  pipeline = _load_pipeline(config, captions, shardings)
  return pipelines.widen(pipeline) if config.widen else pipeline


def _load_pipeline(
  config: ConfigDict, captions: list[str], shardings: Callable[[Params], Params] | None
) -> interop.Pipeline:
  """`load_pipeline` before it is widened."""
  model = config.model.to_dict()
  if not config.pipeline:
    pipeline = pipelines.create(model, captions, config.seed)
    if shardings is None:
      return pipeline
    params = {name: sharding.put(tree, shardings(tree)) for name, tree in pipeline.params.items()}
    return dataclasses.replace(pipeline, params=params)
  if surplus := sorted(set(model) - {"scheduler"}):
    raise InputError(
      f"config.pipeline is {config.pipeline!r}, so config.model may only change its scheduler, "
      f"not {surplus}"
    )
  pipeline = pipelines.load(
    config.pipeline,
    revision=config.revision or None,
    variant=config.variant or None,
    shardings=shardings and (lambda name, tree: shardings(tree)),
  )
  scheduler = {**pipeline.configs["scheduler"], **model.get("scheduler", {})}
  return dataclasses.replace(pipeline, configs={**pipeline.configs, "scheduler": scheduler})


def make_loss(section: Mapping) -> Loss:
  """The loss that a config's `loss` section names, its hyperparameters bound.

  Args:
    section: `name` and the loss's keyword-only arguments; the `base` of a wrapper is a section of
      the same kind: {"name": "sdpo", "mu": 0.9, "base": {"name": "dpo", "beta": 2000.0}}. Keys of
      `losses.CONTROLS` put these controls around it.

  Returns:
    (errors) or (errors, residuals) -> (loss, diagnostics), see `losses.requirements`.

  Raises:
    InputError: A name or a key is not known, or a needed key is missing.
  """
  if not isinstance(section, Mapping | ConfigDict):
    raise InputError(f"a loss is a section with a name and its arguments, got {section!r}")
  own, controls = losses.split_controls(section)
  function, hyperparameters = choose.select("loss", own, losses.LOSSES, also=losses.CONTROLS)
  if "base" in hyperparameters:
    hyperparameters["base"] = make_loss(hyperparameters["base"])
  return losses.control(functools.partial(function, **hyperparameters), **controls)


def beta_factor(config: ConfigDict) -> Callable | None:
  """The factor of beta that config.beta describes, see `losses.beta_factor`; None: 1.

  Args:
    config: A config; its data set is not loaded.

  Raises:
    InputError: A key has no effect beside the others, or no meaning for the loss.
  """
  temperature, start, end = (
    config.beta[key] for key in ("score_temperature", "decay_start", "decay_end")
  )
  has_gaps = bool(config.data.get("score_gaps", False))
  if has_gaps != (temperature > 0):
    raise InputError(
      "config.beta.score_temperature and config.data.score_gaps belong together: set both, or none"
    )
  if (start or end) and start >= end:
    raise InputError(f"config.beta.decay_end must be above decay_start {start}, got {end}")
  if not (has_gaps or end):
    return None
  section = config.loss
  while "base" in section:
    section = section["base"]
  if section["name"] not in losses.PRODUCT_OF_BETA:
    raise InputError(
      f"config.beta has no meaning for the loss {section['name']!r}, in which beta is more than a "
      f"factor of the errors; it has for {', '.join(losses.PRODUCT_OF_BETA)}, and sdpo around them"
    )
  options = {"decay_start": start, "decay_end": end}
  if has_gaps:
    options["temperature"] = temperature
  return functools.partial(losses.beta_factor, **options)


def uses_reference(config: ConfigDict) -> bool:
  """Whether the loss of a checked config takes the errors of a reference."""
  return losses.requirements(make_loss(config.loss)).reference


def make_objective(
  config: ConfigDict,
  pipeline: interop.Pipeline,
  examples: Data | None = None,
  *,
  mesh: Mesh | None = None,
  attention: str | None = None,
) -> Objective:
  """The training objective that a config describes, over the networks of a pipeline.

  A dropped caption is the encoded empty one, or zeros where the pipeline's family conditions on
  zeros for an empty caption. Where text embeddings are cached, so is the empty caption's.

  Args:
    config: A checked config.
    pipeline: Its configs and tokenizers are used, its parameters are not.
    examples: The data set, where it may hold cached latents; None: images.
    mesh: Devices that parameters and examples are sharded over; None: one device.
    attention: Attention implementation, see `models.Compute`.

  Returns:
    `Objective`.

  Raises:
    InputError: The loss, one of its keys, or the timestep sampler is not known.
  """
  loss = make_loss(config.loss)
  compute = models.Compute(
    attention=attention,
    remat=config.remat,
    placement=None if mesh is None else sharding.placement(mesh),
  )
  functions = pipelines.build(pipeline, dtype=config.dtype, compute=compute)
  if functions.encode_source is not None and config.caption_dropout:
    raise InputError(
      f"config.caption_dropout is {config.caption_dropout}, and the pipeline edits images; leave "
      "it at 0 and set config.editing.caption_dropout, source_dropout and both_dropout"
    )
  return Objective(
    pipeline=functions,
    loss=loss,
    timestep_sampler=functions.process.timestep_sampler(config.timesteps.to_dict()),
    caption_dropout=config.caption_dropout,
    seed=config.seed,
    null_text=_null_text(functions, examples),
    combine=functools.partial(adapt, alpha=config.lora.alpha) if config.lora.rank else replace,
    # Policies that name what they save make policy and reference round alike by themselves, see
    # `objective.EXACT_ROUNDING`.
    recompute=losses.requirements(loss).reference
    and config.dtype != "float32"
    and config.remat not in models.remat.SAVED,
    weights=functions.process.weights(config.timestep_weights.to_dict()),
    label_flip_rate=config.label_flip_rate,
    beta_factor=beta_factor(config),
    reference_update=references.from_config(config.reference),
    edit_dropout=EditDropout(
      config.editing.caption_dropout, config.editing.source_dropout, config.editing.both_dropout
    ),
  )


def make_train_step(
  config: ConfigDict, objective: Objective, optimizer: Any, mesh: Mesh
) -> Callable[..., Any]:
  """The train step that a config describes, to be compiled by `step.compile_step`.

  Args:
    config: A checked config.
    objective: The training objective.
    optimizer: From `optimizer.make_optimizer`.
    mesh: Devices that parameters and gradients are sharded over.

  Returns:
    See `step.make_step`.
  """
  return make_step(
    objective,
    optimizer,
    ema_decay=config.ema_decay,
    reference_update=references.from_config(config.reference),
    grad_accumulation_steps=config.grad_accumulation_steps,
    constrain=functools.partial(sharding.constrain, mesh),
  )


def _null_text(pipeline: TextToImage, examples: Data | None) -> Text | None:
  """The empty caption in the form of a batch's text; None where it is zeros."""
  if pipeline.zero_null_text:
    return None
  if isinstance(examples, data.CachedLatents) and examples.embeddings:
    return examples.null()
  return {name: jnp.asarray(rows[0]) for name, rows in pipeline.tokenize([""])[0].items()}


def cached_components(pipeline: TextToImage, examples: Data | None) -> tuple[str, ...]:
  """The components that no step runs, because the examples hold their results.

  Args:
    pipeline: The pipeline.
    examples: The data set; None: images.
  """
  if not isinstance(examples, data.CachedLatents):
    return ()
  return (pipeline.autoencoder, *(pipeline.text_encoders if examples.embeddings else ()))


def trained_components(config: ConfigDict, pipeline: TextToImage) -> tuple[str, ...]:
  """The components that a run trains: config.trained, by default the denoiser.

  Args:
    config: A checked config.
    pipeline: The pipeline.

  Raises:
    InputError: A component is not there, or is the autoencoder.
  """
  trained = tuple(config.trained) or (pipeline.denoiser,)
  possible = {pipeline.denoiser, *pipeline.text_encoders}
  for name in trained:
    if name == pipeline.autoencoder:
      raise InputError(
        f"config.trained names {name!r}, but images are encoded without gradient, so that policy "
        "and reference denoise the same latents; leave it out"
      )
    if name not in possible:
      raise unknown("component in config.trained", name, possible)
  if config.widen and pipeline.denoiser not in trained:
    raise InputError(
      f"config.widen=True and config.trained leaves {pipeline.denoiser!r} out, whose weights of "
      "the source image would stay zero; train it too"
    )
  return trained


def split_params(
  config: ConfigDict, pipeline: interop.Pipeline, examples: Data | None = None
) -> tuple[Params, Params, Params | None]:
  """Trained, frozen and reference parameters of a run.

  Networks that no step runs, because the examples hold their results, are left out.

  Args:
    config: A checked config.
    pipeline: The pipeline that the run starts from.
    examples: The data set; None: images.

  Returns:
    (trained, frozen, reference), each component -> tree, as `Objective` takes them. With LoRA the
    trained trees are LoRAs that change nothing yet, and all networks are frozen. Arrays are the
    pipeline's own, but for kernels of the reference (with LoRA: of the base) in
    config.reference_dtype. A reference that moves is None here, for it is part of the state.

  Raises:
    InputError: A component that is to be trained is not there, or is the autoencoder, or no LoRA
      can be made for it.
  """
  functions = pipelines.build(pipeline)
  names = trained_components(config, functions)
  cached = cached_components(functions, examples)
  params = {name: tree for name, tree in pipeline.params.items() if name not in cached}
  trained = {name: pipeline.params[name] for name in names}
  reference = {name: _kernels_in(tree, config.reference_dtype) for name, tree in trained.items()}
  is_frozen = uses_reference(config) and not references.from_config(config.reference).moves
  if not config.lora.rank:
    frozen = {name: tree for name, tree in params.items() if name not in trained}
    return trained, frozen, reference if is_frozen else None
  root, adapted = jax.random.key(config.seed), {}
  chosen = config.lora.targets.to_dict()
  for name in chosen:
    if name not in functions.lora_targets:
      raise unknown("component in config.lora.targets", name, functions.lora_targets)
  targets = {**functions.lora_targets, **chosen}
  for name, base in trained.items():
    key = jax.random.fold_in(root, functions.components.index(name))
    adapted[name] = models.lora.init(key, base, targets=targets[name], rank=config.lora.rank)
  return adapted, {**params, **reference}, {} if is_frozen else None


def _kernels_in(tree: Params, dtype: str) -> Params:
  """A network with its kernels in a dtype.

  Kernels alone are cast to the compute dtype where they are used; norms and sums of embeddings are
  computed in float32, and rounding them would make another network.
  """

  def cast(path: tuple, x: Any) -> Any:
    if path[-1].key != "kernel" or x.dtype == dtype:
      return x
    if isinstance(x, jax.ShapeDtypeStruct):  # a run that is planned has shapes alone
      return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))
    return x.astype(jnp.dtype(dtype))

  return jax.tree_util.tree_map_with_path(cast, tree)
