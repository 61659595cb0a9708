"""What a run starts from, as its config says: examples, pipeline, objective."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dmpo_jax import data, diffusion, interop, losses, models
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.training import config as configs
from dmpo_jax.training.objective import Loss, Networks, Objective


def load_examples(config: ConfigDict) -> data.Examples | data.StoredPairs:
  """The examples that the config's `data` section names."""
  build, options = configs.select("data set", config.data, data.DATASETS)
  return build(**options)


def make_loader(
  config: ConfigDict, pipeline: interop.Pipeline, examples: data.Examples | data.StoredPairs
) -> data.Loader | data.StoredLoader:
  """The batches that a run of a pipeline sees, by step.

  Raises:
    InputError: The data set does not fit the pipeline or the batch size.
  """

  def tokenize(captions: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    tokens = interop.tokenize(pipeline.tokenizer, captions)
    return {"input_ids": tokens.ids}, tokens.truncated

  parts = pipeline.configs
  seen = {"in_channels": 3, **parts["vae"]} if "vae" in parts else parts["unet"]
  return examples.loader(
    tokenize, channels=seen["in_channels"], batch_size=config.batch_size, seed=config.seed
  )


def load_pipeline(config: ConfigDict, captions: list[str]) -> interop.Pipeline:
  """The pipeline a run starts from: the one the config names, or new random networks.

  Args:
    config: A checked config; its pipeline is a folder or the "owner/name" of one on the hub.
    captions: The captions of the data; a new pipeline's vocabulary is made of their words.

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
    pipeline = interop.load_pipeline(config.pipeline)
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
  return interop.pixel_pipeline(model, params, tokenizer)


def make_loss(section: Mapping) -> Loss:
  """The objective that a config's `loss` section names, its hyperparameters bound.

  Args:
    section: `name` and the objective's keyword-only arguments; the `base` of a wrapper is a section
      of the same kind: {"name": "sdpo", "mu": 0.9, "base": {"name": "dpo", "beta": 2000.0}}.

  Returns:
    (errors) or (errors, residuals) -> (loss, diagnostics), as `losses.facts` of it says.

  Raises:
    InputError: A name or a key is not known, or a needed key is missing.
  """
  if not isinstance(section, Mapping | ConfigDict):
    raise InputError(f"an objective is a section with a name and its arguments, got {section!r}")
  function, hyperparameters = configs.select("objective", section, losses.OBJECTIVES)
  if "base" in hyperparameters:
    hyperparameters["base"] = make_loss(hyperparameters["base"])
  return functools.partial(function, **hyperparameters)


def make_objective(
  config: ConfigDict, pipeline: interop.Pipeline, null_ids: np.ndarray
) -> Objective:
  """The objective a config describes, over the networks of a pipeline.

  Raises:
    InputError: The objective, one of its keys, or the timestep sampler is not known.
  """
  schedule = diffusion.from_config(pipeline.configs["scheduler"])
  loss = make_loss(config.loss)
  if losses.facts(loss).reference != config.reference:
    name = config.loss.name
    raise InputError(
      f"objective {name!r} needs the errors of the frozen starting pipeline: config.reference=True"
      if losses.facts(loss).reference
      else f"objective {name!r} uses no reference, which would only cost a copy of the parameters "
      "and a forward: config.reference=False"
    )
  return Objective(
    networks=Networks(
      unet=models.build(pipeline.configs["unet"]).apply,
      text_encoder=models.build(pipeline.configs["text_encoder"]).apply,
    ),
    schedule=schedule,
    loss=loss,
    timesteps=diffusion.timesteps.make(config.timesteps.to_dict(), len(schedule.alphas_cumprod)),
    caption_dropout=config.caption_dropout,
    seed=config.seed,
    null_ids=jnp.asarray(null_ids),
  )
