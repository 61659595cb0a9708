"""The family of Stable Diffusion: SD1.5, SD2.1, SDXL, InstructPix2Pix, and UNets on pixels."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import diffusion, interop, models
from dmpo_jax.common.files import located
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.pipelines import autoencoder, fingerprints, stable_diffusion_flops
from dmpo_jax.pipelines import stable_diffusion_parts as parts
from dmpo_jax.pipelines.autoencoder import AUTOENCODER
from dmpo_jax.pipelines.interface import Conditioning, Family, Params, Text, TextToImage

DENOISER = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# Conditioning on the image to edit: its latents, or its pixels.
SOURCE = "source"
# The order fixes the random initialisation of LoRAs: append, never reorder.
COMPONENTS = (DENOISER, AUTOENCODER, *TEXT_ENCODERS)


def build(
  pipeline: interop.Pipeline,
  *,
  dtype: Any = "float32",
  compute: models.Compute = models.Compute(),
) -> TextToImage:
  """A pipeline of Stable Diffusion as pure functions of its parameters.

  UNet and text encoders compute in `dtype`: parameters are cast where they are used. The
  autoencoder computes in float32, unless its config sets force_upcast to false.

  Args:
    pipeline: Its configs, index and tokenizers are used, its parameters are not.
    dtype: Compute dtype of UNet and text encoders.
    compute: Attention kernels, rematerialisation (of the UNet alone) and sharding.

  Returns:
    `TextToImage`.

  Raises:
    InputError: A network, or a value in a config, is not supported.
  """
  configs = pipeline.configs
  for name, (_, kind) in interop.components_of(pipeline.model_index).items():
    if name in COMPONENTS and name not in configs:
      raise InputError(f"{name} is a {kind}, which is not supported")
  unet = unet_config.read(configs[DENOISER])
  encoders = tuple(name for name in TEXT_ENCODERS if name in configs)
  lengths = parts.check(pipeline, unet, encoders)
  frozen = dataclasses.replace(compute, remat="none")
  denoiser = models.build(configs[DENOISER], compute=compute).apply
  encode = [models.build(configs[name], compute=frozen).apply for name in encoders]

  def encode_text(params: Params, text: Text) -> Conditioning:
    if "encoder_hidden_states" in text:
      return {name: x.astype(jnp.float32) for name, x in text.items()}
    outputs = [
      apply(params[name], text[ids], dtype=dtype)
      for apply, name, ids in zip(encode, encoders, text, strict=True)
    ]
    return join_encodings(outputs)

  def condition(
    text: Conditioning, geometry: jax.Array | None, source: jax.Array | None
  ) -> Conditioning:
    if (source is not None) != edits:
      raise InputError(
        "the UNet reads the image to edit beside the noisy one, and there is none"
        if edits
        else "there is a source image, and the pipeline edits none: its UNet reads "
        f"{unet.in_channels} channels"
      )
    if edits:
      # CosXL-Edit alone scales them.
      source = vae.scale(source) if vae and scales_source else source
      text = {**text, SOURCE: source}
    if unet.text_time is None:
      return text
    if geometry is None:
      raise InputError(
        "SDXL is conditioned on original size, crop and target size, which cached latents carry as "
        "geometry: this batch has none"
      )
    return {**text, "time_ids": geometry}

  def denoise(params: Params, x_t: jax.Array, t: jax.Array, text: Conditioning) -> jax.Array:
    if edits:
      x_t = jnp.concatenate([x_t, text[SOURCE].astype(x_t.dtype)], axis=-1)  # [B, h, w, 2 Z]
      text = {name: x for name, x in text.items() if name != SOURCE}
    return denoiser(params[DENOISER], x_t, t, **text, dtype=dtype)

  def encode_source(params: Params, images: jax.Array) -> jax.Array:
    return (vae.posterior(params, images).mean if vae else images).astype(jnp.float32)

  vae = None
  if AUTOENCODER in configs:
    vae = autoencoder.make(configs[AUTOENCODER], dtype, frozen)
  edits = unet.in_channels == 2 * unet.out_channels
  scales_source = pipeline.model_index.get("is_cosxl_edit", False) is True
  forced = pipeline.model_index.get("force_zeros_for_empty_prompt", True)
  scheduler = parts.scheduler(pipeline)
  with located("scheduler/scheduler_config.json"):
    process = diffusion.from_config(configs["scheduler"])
  return TextToImage(
    components=COMPONENTS,
    denoiser=DENOISER,
    text_encoders=encoders,
    autoencoder=AUTOENCODER if vae else None,
    process=process,
    image_channels=vae.channels if vae else unet.out_channels,
    text_shapes={
      _ids(name): jax.ShapeDtypeStruct((length,), jnp.int32)
      for name, length in zip(encoders, lengths, strict=True)
    },
    uses_geometry=unet.text_time is not None,
    zero_null_text=len(encoders) == 2 and bool(forced),
    default_guidance=(5.0 if len(encoders) == 2 else 7.5) if vae else 2.0,
    default_size=functools.partial(_default_size, pipeline, vae),
    lora_targets={
      DENOISER: models.lora.ATTENTION,
      **dict.fromkeys(encoders, models.lora.TEXT_ATTENTION),
    },
    tokenize=functools.partial(tokenize, pipeline),
    encode_text=encode_text,
    condition=condition,
    denoise=denoise,
    posterior=vae and vae.posterior,
    scale=vae.scale if vae else lambda x: x,
    decode=vae.decode if vae else lambda params, x: x,
    sample_shape=functools.partial(_sample_shape, unet.out_channels, vae),
    make_solver=functools.partial(_make_solver, scheduler),
    solver_settings=functools.partial(_solver_settings, scheduler),
    flops=functools.partial(stable_diffusion_flops.of_batch, configs),
    encode_source=encode_source if edits else None,
  )


def tokenize(
  pipeline: interop.Pipeline, captions: Sequence[str]
) -> tuple[dict[str, np.ndarray], int]:
  """Token ids of captions for each text encoder of a pipeline.

  Args:
    pipeline: Its tokenizers are used.
    captions: N strings.

  Returns:
    "input_ids" and, with a second text encoder, "input_ids_2" -> int32 `[N, L]`; and the number of
    captions that lost words at their end.

  Raises:
    InputError: The pipeline has no tokenizer for one of its text encoders.
  """
  ids, truncated = {}, 0
  for name in TEXT_ENCODERS:
    if name not in pipeline.configs:
      continue
    tokenizer = name.replace("text_encoder", "tokenizer")
    if tokenizer not in pipeline.tokenizers:
      raise InputError(f"the pipeline has a {name} and no {tokenizer}")
    tokens = interop.tokenize(pipeline.tokenizers[tokenizer], captions)
    ids[_ids(name)] = tokens.ids
    truncated = max(truncated, tokens.truncated)
  return ids, truncated


def join_encodings(outputs: Sequence[models.TextOutput]) -> Conditioning:
  """The UNet's conditioning on a caption, from the results of its text encoders.

  One encoder (SD1.5, SD2.1): its last hidden state. Two (SDXL): their penultimate hidden states
  side by side, and the second one's projected end token.

  Args:
    outputs: Of the one or two encoders, `[B, L, D]` each.

  Returns:
    "encoder_hidden_states" `[B, L, D]` and, of two encoders, "text_embeds" `[B, P]`.

  Source: diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline, `encode_prompt`.
  """
  if len(outputs) == 1:
    return {"encoder_hidden_states": outputs[0].last_hidden_state}
  hidden = jnp.concatenate([output.penultimate for output in outputs], axis=-1)  # [B, L, D]
  return {"encoder_hidden_states": hidden, "text_embeds": outputs[1].text_embeds}


def create(model: Mapping[str, Any], captions: Sequence[str], seed: int) -> interop.Pipeline:
  """A pipeline with new random networks that denoises pixels.

  Args:
    model: "unet", "text_encoder" and "scheduler" -> config, with the class in `_class_name`
      (`architectures` for the text encoder).
    captions: The tokenizer's vocabulary is made of their words.
    seed: Seed of the initialisation.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: A component is missing or unknown, or a config is not supported.
  """
  model, components = dict(model), {DENOISER, TEXT_ENCODERS[0], "scheduler"}
  for name in model:
    if name not in components:
      raise unknown("component in config.model", name, components)
  if missing := components - set(model):
    raise InputError(f"config.pipeline is empty and config.model lacks {sorted(missing)}")
  words = sorted({word for caption in captions for word in caption.split()})
  length = clip_config.read(model["text_encoder"]).max_position_embeddings
  tokenizer = interop.build_tokenizer(words, length)
  model["text_encoder"] = {
    **model["text_encoder"],
    "vocab_size": len(tokenizer),
    "max_position_embeddings": length,
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
  }
  root = jax.random.key(seed)
  params = {
    name: models.build(model[name]).init(jax.random.fold_in(root, i))
    for i, name in enumerate((DENOISER, TEXT_ENCODERS[0]))
  }
  return interop.pixel_pipeline(model, params, tokenizer)


def encoder_fingerprint(pipeline: interop.Pipeline, *, embeddings: bool) -> dict[str, Any]:
  """Everything that cached latents and text embeddings depend on beside images and captions.

  Args:
    pipeline: Its autoencoder and, for embeddings, text encoders must be loaded.
    embeddings: Whether text embeddings are cached too.

  Returns:
    See `fingerprints.of_encoders`.
  """
  encoders = [name for name in TEXT_ENCODERS if name in pipeline.configs]
  return fingerprints.of_encoders(pipeline, encoders, embeddings=embeddings)


def load(
  source: str | os.PathLike, *, revision: str | None = None, **options: Any
) -> interop.Pipeline:
  """Reads a pipeline of this family.

  Args:
    source: A folder, or the "owner/name" of a repository on the hub.
    revision: Branch, tag or commit of the repository.
    **options: Those of `interop.load_pipeline`, but networks and required.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: The pipeline cannot be read, or is a refiner.
  """
  components = interop.components_of(interop.read_model_index(source, revision=revision))
  first, second = TEXT_ENCODERS
  if second in components and first not in components:
    raise InputError(
      f"{source} is a refiner of SDXL (it has a {second} and no {first}), which is not supported; "
      "take the base pipeline"
    )
  return interop.load_pipeline(
    source,
    revision=revision,
    networks=COMPONENTS,
    required=(DENOISER, first, interop.SCHEDULER),
    **options,
  )


FAMILY = Family(
  build=build,
  encoder_fingerprint=encoder_fingerprint,
  create=create,
  load=load,
)


def _ids(text_encoder: str) -> str:
  """Name of the token ids of a text encoder."""
  return text_encoder.replace("text_encoder", "input_ids")


def _default_size(
  pipeline: interop.Pipeline, vae: autoencoder.Autoencoder | None
) -> tuple[int, int]:
  height, width = parts.sample_size(pipeline)
  factor = vae.downscale if vae else 1
  return height * factor, width * factor


def _sample_shape(
  channels: int, vae: autoencoder.Autoencoder | None, size: tuple[int, int]
) -> tuple[int, int, int]:
  factor, allowed = (vae.downscale, (vae.latent_channels,)) if vae else (1, (1, 3))
  if channels not in allowed:
    raise InputError(
      f"unet/config.json: out_channels is {channels}; expected "
      f"{' or '.join(map(str, allowed))}, the channels of a sample"
    )
  for name, value in zip(("height", "width"), size, strict=True):
    if value < factor or value % factor:
      raise InputError(
        f"{name} is {value}; expected a multiple of {factor}, the pixels of a latent"
      )
  return size[0] // factor, size[1] // factor, channels


def _make_solver(
  scheduler: Mapping[str, Any],
  num_steps: int,
  *,
  name: str | None = None,
  karras: bool | None = None,
  size: tuple[int, int] | None = None,
) -> diffusion.Solver:
  with located("scheduler/scheduler_config.json"):
    return diffusion.make_solver(scheduler, num_steps, name=name, karras=karras)


def _solver_settings(
  scheduler: Mapping[str, Any], name: str | None = None, karras: bool | None = None
) -> dict[str, Any]:
  name = name or diffusion.solver_name(scheduler)
  if karras is None and name in ("euler", "heun", "dpm_solver_pp_2m"):
    karras = bool(scheduler.get("use_karras_sigmas"))
  return {"scheduler": dict(scheduler), "solver": name, "karras": bool(karras)}
