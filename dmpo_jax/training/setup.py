"""What a run starts from, as its config says: examples, pipeline, objective."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import data, diffusion, interop, losses, models
from dmpo_jax.common import choose
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.interop.pipeline import NETWORKS
from dmpo_jax.parallel import sharding
from dmpo_jax.pipelines import fingerprint, stable_diffusion
from dmpo_jax.training.objective import Loss, Objective, Params, adapt, replace

Data = data.Examples | data.StoredPairs | data.EncodedPairs

# What a batch can hold encoded, and the networks that no step runs then.
RUN_FOR = {"images": ("vae",), "embeddings": fingerprint.TEXT_ENCODERS}


def load_examples(config: ConfigDict) -> Data:
  """The examples that the config's `data` section names."""
  build, options = choose.select("data set", config.data, data.DATASETS)
  return build(**options)


def make_loaders(
  config: ConfigDict, pipeline: interop.Pipeline, examples: Data
) -> Callable[..., data.Loader | data.StoredLoader]:
  """What makes loaders of the batches that a run of a pipeline sees.

  Of a pipeline that lies on devices of several processes, all of them call this.

  Returns:
    `(process_index=0, process_count=1)` -> the loader of one of so many equal parts of each batch.

  Raises:
    InputError: The data set does not fit the pipeline, or, by what is returned, the batch size.
  """
  if isinstance(examples, data.EncodedPairs):
    fingerprint.check(examples, pipeline, config.trained)
    return functools.partial(examples.loader, batch_size=config.batch_size, seed=config.seed)
  parts = pipeline.configs
  seen = {"in_channels": 3, **parts["vae"]} if "vae" in parts else parts["unet"]
  return functools.partial(
    examples.loader,
    functools.partial(stable_diffusion.tokenize, pipeline),
    channels=seen["in_channels"],
    batch_size=config.batch_size,
    seed=config.seed,
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
    shardings: Of a network's parameters, by their shapes: each process then reads and holds what
      its devices do. None: numpy arrays.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: The pipeline cannot be read, or the description of new networks is incomplete.
  """
  model = config.model.to_dict()
  components = {"unet", "text_encoder", "scheduler"}
  for name in model:
    if name not in components:
      raise unknown("component in config.model", name, components)
  if config.pipeline:
    pipeline = interop.load_pipeline(
      config.pipeline, shardings=shardings and (lambda name, tree: shardings(tree))
    )
    if set(model) - {"scheduler"}:
      raise InputError(
        f"config.pipeline is {config.pipeline!r}, so config.model may only change its scheduler, "
        f"not {sorted(set(model) - {'scheduler'})}"
      )
    scheduler = {**pipeline.configs["scheduler"], **model.get("scheduler", {})}
    return dataclasses.replace(pipeline, configs={**pipeline.configs, "scheduler": scheduler})
  missing = components - set(model)
  if missing:
    raise InputError(f"config.pipeline is empty and config.model lacks {sorted(missing)}")
  words = sorted({word for caption in captions for word in caption.split()})
  tokenizer = interop.build_tokenizer(words, model["text_encoder"]["max_position_embeddings"])
  model["text_encoder"] = {
    **model["text_encoder"],
    "vocab_size": len(tokenizer),
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
  }
  root = jax.random.key(config.seed)
  params = {
    name: models.build(model[name]).init(jax.random.fold_in(root, i))
    for i, name in enumerate(("unet", "text_encoder"))
  }
  if shardings:
    params = {name: placed(tree, shardings(tree)) for name, tree in params.items()}
  return interop.pixel_pipeline(model, params, tokenizer)


def placed(tree: Any, shardings: Any) -> Any:
  """Arrays on the devices of all processes.

  Args:
    tree: Arrays on the host, of which every process has all, or on devices.
    shardings: Where they are to lie.

  Returns:
    The tree of jax.Arrays; those that lie there already are the same.
  """

  def place(array: np.ndarray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(array, jax.Array):
      return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  return jax.tree.map(place, tree, shardings)


def make_loss(section: Mapping) -> Loss:
  """The objective that a config's `loss` section names, its hyperparameters bound.

  Args:
    section: `name` and the objective's keyword-only arguments; the `base` of a wrapper is a section
      of the same kind: {"name": "sdpo", "mu": 0.9, "base": {"name": "dpo", "beta": 2000.0}}.

  Returns:
    (errors) or (errors, residuals) -> (loss, diagnostics), as `losses.requirements` of it says.

  Raises:
    InputError: A name or a key is not known, or a needed key is missing.
  """
  if not isinstance(section, Mapping | ConfigDict):
    raise InputError(f"an objective is a section with a name and its arguments, got {section!r}")
  function, hyperparameters = choose.select("objective", section, losses.LOSSES)
  if "base" in hyperparameters:
    hyperparameters["base"] = make_loss(hyperparameters["base"])
  return functools.partial(function, **hyperparameters)


def make_objective(
  config: ConfigDict,
  pipeline: interop.Pipeline,
  examples: Data | None = None,
  *,
  mesh: Mesh | None = None,
  attention: str | None = None,
) -> Objective:
  """The objective a config describes, over the networks of a pipeline.

  Args:
    config: A checked config.
    pipeline: For its configs and tokenizers.
    examples: The data set, for what of the pipeline it holds the results of; None: of nothing.
    mesh: What parameters and examples are spread over; None: one device.
    attention: Attention implementation, as for `models.Compute`.

  Returns:
    `Objective`.

  A dropped caption is the encoded empty one, or zeros where diffusers' pipeline takes them: SDXL,
  unless its index has force_zeros_for_empty_prompt false. Where examples have stored embeddings,
  so has the empty caption.

  Raises:
    InputError: The objective, one of its keys, or the timestep sampler is not known.
  """
  schedule = diffusion.from_config(pipeline.configs["scheduler"])
  loss = make_loss(config.loss)
  if losses.requirements(loss).reference != config.reference:
    name = config.loss.name
    raise InputError(
      f"objective {name!r} needs the errors of the frozen starting pipeline: config.reference=True"
      if losses.requirements(loss).reference
      else f"objective {name!r} uses no reference, which would only cost a copy of the parameters "
      "and a forward: config.reference=False"
    )
  null_ids = tuple(
    jnp.asarray(ids[0]) for ids in stable_diffusion.tokenize(pipeline, [""])[0].values()
  )
  zeros = pipeline.model_index.get("force_zeros_for_empty_prompt", True)
  return Objective(
    networks=stable_diffusion.make_networks(
      pipeline,
      config.dtype,
      compute=models.Compute(
        attention=attention,
        remat=config.remat,
        placement=None if mesh is None else sharding.placement(mesh),
      ),
    ),
    schedule=schedule,
    loss=loss,
    timesteps=diffusion.timesteps.make(config.timesteps.to_dict(), len(schedule.alphas_cumprod)),
    caption_dropout=config.caption_dropout,
    seed=config.seed,
    null_ids=None if len(null_ids) == 2 and zeros else null_ids,
    combine=functools.partial(adapt, alpha=config.lora.alpha) if config.lora.rank else replace,
    # Policies that name what they keep see to equal rounding themselves, see `objective.ROUNDING`.
    recompute=config.reference
    and config.dtype != "float32"
    and config.remat not in models.remat.SAVED,
    weights=diffusion.weights.make(config.timestep_weights.to_dict(), schedule),
    label_noise=config.label_noise,
    null_text=_null_text(examples) if "embeddings" in stored(examples) else None,
  )


def stored(examples: Data | None) -> tuple[str, ...]:
  """What of a batch is encoded before: "images", "embeddings"."""
  if not isinstance(examples, data.EncodedPairs):
    return ()
  return ("images", "embeddings") if examples.embeddings else ("images",)


def _null_text(examples: data.EncodedPairs) -> stable_diffusion.Conditioning:
  found = examples.null()
  names = {"embeddings": "encoder_hidden_states", "pooled": "text_embeds"}
  return {names[name]: x for name, x in found.items()}


def split_params(
  config: ConfigDict, pipeline: interop.Pipeline, examples: Data | None = None
) -> tuple[Params, Params, Params | None]:
  """What a config trains, what stays as it is, and the reference.

  Networks that no step runs, because the examples hold what they give, are left out.

  Returns:
    (trained, frozen, reference), each component -> tree, as `Objective` takes them. With LoRA the
    trained trees are LoRAs that change nothing yet, and all networks are frozen. Arrays are the
    pipeline's own, but for kernels of the reference (with LoRA: of the base) in
    config.reference_dtype.

  Raises:
    InputError: A component that is to be trained is not there, or is the autoencoder, or no LoRA
      can be made for it.
  """
  for name in config.trained:
    if name == "vae":
      raise InputError(
        "config.trained names 'vae', but images are encoded without gradient, so that policy and "
        "reference denoise the same latents; leave it out"
      )
    if name not in pipeline.params:
      raise unknown("component in config.trained", name, set(pipeline.params) - {"vae"})
  idle = [name for part in stored(examples) for name in RUN_FOR[part]]
  params = {name: tree for name, tree in pipeline.params.items() if name not in idle}
  trained = {name: pipeline.params[name] for name in config.trained}
  if not config.lora.rank:
    frozen = {name: tree for name, tree in params.items() if name not in trained}
    reference = {name: _rounded(tree, config.reference_dtype) for name, tree in trained.items()}
    return trained, frozen, reference if config.reference else None
  root, adapted = jax.random.key(config.seed), {}
  for name, base in trained.items():
    key = jax.random.fold_in(root, NETWORKS.index(name))
    targets = config.lora.targets[name]
    adapted[name] = models.lora.init(key, base, targets=targets, rank=config.lora.rank)
  rounded = {name: _rounded(tree, config.reference_dtype) for name, tree in trained.items()}
  return adapted, {**params, **rounded}, {} if config.reference else None


def _rounded(tree: Params, dtype: str) -> Params:
  """A network with its kernels in a dtype.

  Only they are cast to that of the computation where they are used; norms and sums of embeddings
  are computed in float32, and would be another network's.
  """

  def cast(path: tuple, x: Any) -> Any:
    if path[-1].key != "kernel" or x.dtype == dtype:
      return x
    if isinstance(x, jax.ShapeDtypeStruct):  # a run that is planned has no numbers
      return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))
    return x.astype(jnp.dtype(dtype))

  return jax.tree_util.tree_map_with_path(cast, tree)
