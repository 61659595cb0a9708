"""The family of Stable Diffusion 3 and 3.5, and MMDiTs on pixels: flow matching."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import diffusion, interop, models
from dmpo_jax.common.files import located
from dmpo_jax.diffusion import flow_config
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.mmdit import config as mmdit_config
from dmpo_jax.models.t5 import config as t5_config
from dmpo_jax.pipelines import autoencoder, fingerprints, stable_diffusion_3_flops, tokenizers
from dmpo_jax.pipelines.autoencoder import AUTOENCODER
from dmpo_jax.pipelines.interface import Conditioning, Family, Params, Text, TextToImage

NAME = "StableDiffusion3Pipeline"
DENOISER = "transformer"
CLIP_ENCODERS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
TEXT_ENCODERS = (*CLIP_ENCODERS, T5)
# The order fixes the random initialisation of LoRAs: append, never reorder.
COMPONENTS = (DENOISER, AUTOENCODER, *TEXT_ENCODERS)

# The length of T5's part of a caption, in tokens: StableDiffusion3Pipeline's default. Pipelines
# that `create` makes have a field of this name in their index, which diffusers does not read.
T5_TOKENS, T5_TOKENS_FIELD = 256, "_max_sequence_length"

# Layers that a LoRA adapts by default.
ATTENTION = (
  *models.lora.ATTENTION,
  *(f"*.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
)
T5_ATTENTION = ("*.SelfAttention.q", "*.SelfAttention.k", "*.SelfAttention.v", "*.SelfAttention.o")


def build(
  pipeline: interop.Pipeline,
  *,
  dtype: Any = "float32",
  compute: models.Compute = models.Compute(),
) -> TextToImage:
  """A pipeline of Stable Diffusion 3 or 3.5 as pure functions of its parameters.

  Transformer and text encoders compute in `dtype`: parameters are cast where they are used. The
  autoencoder computes in float32, unless its config sets force_upcast to false.

  Args:
    pipeline: Its configs, index and tokenizers are used, its parameters are not.
    dtype: Compute dtype of transformer and text encoders.
    compute: Attention kernels, rematerialisation (of the transformer alone) and sharding.

  Returns:
    `TextToImage`.

  Raises:
    InputError: A network, or a value in a config, is not supported.
  """
  configs = pipeline.configs
  for name, (_, kind) in interop.components_of(pipeline.model_index).items():
    if name in COMPONENTS and name not in configs:
      raise InputError(f"{name} is a {kind}, which is not supported")
  mmdit = mmdit_config.read(configs[DENOISER])
  t5_tokens = _t5_tokens(pipeline.model_index)
  encoders = tuple(name for name in TEXT_ENCODERS if name in configs)
  _check_widths(configs, mmdit)
  frozen = dataclasses.replace(compute, remat="none")
  denoiser = models.build(configs[DENOISER], compute=compute).apply
  encode = {name: models.build(configs[name], compute=frozen).apply for name in encoders}
  vae = None
  if AUTOENCODER in configs:
    vae = autoencoder.make(configs[AUTOENCODER], dtype, frozen, patch=mmdit.patch_size)
  _check_channels(mmdit, vae)
  scheduler = configs["scheduler"]
  with located("scheduler/scheduler_config.json"):
    process = flow_config.from_config(scheduler)

  def encode_text(params: Params, text: Text) -> Conditioning:
    if "pooled_projections" in text:
      return {name: x.astype(jnp.float32) for name, x in text.items()}
    outputs = {name: encode[name](params[name], text[_ids(name)], dtype=dtype) for name in encoders}
    clips = [outputs[name] for name in CLIP_ENCODERS]
    encoded = {
      "clip_hidden_states": jnp.concatenate([clip.penultimate for clip in clips], axis=-1),
      "pooled_projections": jnp.concatenate([clip.text_embeds for clip in clips], axis=-1),
    }
    return {**encoded, "t5_hidden_states": outputs[T5]} if T5 in outputs else encoded

  def condition(
    text: Conditioning, geometry: jax.Array | None, source: jax.Array | None
  ) -> Conditioning:
    if source is not None:
      raise InputError(
        "there is a source image, and no pipeline of Stable Diffusion 3 edits images"
      )
    hidden = join_hidden_states(
      text["clip_hidden_states"],
      text.get("t5_hidden_states"),
      width=mmdit.joint_attention_dim,
      t5_tokens=t5_tokens,
    )
    return {"encoder_hidden_states": hidden, "pooled_projections": text["pooled_projections"]}

  def denoise(params: Params, x_t: jax.Array, t: jax.Array, text: Conditioning) -> jax.Array:
    return denoiser(params[DENOISER], x_t, process.num_timesteps * t, **text, dtype=dtype)

  shapes = {_ids(k): n for k, n in _lengths(pipeline, encoders, t5_tokens).items()}
  return TextToImage(
    components=COMPONENTS,
    denoiser=DENOISER,
    text_encoders=encoders,
    autoencoder=AUTOENCODER if vae else None,
    process=process,
    image_channels=vae.channels if vae else mmdit.in_channels,
    text_shapes={k: jax.ShapeDtypeStruct((length,), jnp.int32) for k, length in shapes.items()},
    uses_geometry=False,
    zero_null_text=False,
    # Those of the model cards of SD3-medium and SD3.5-medium.
    default_guidance=(4.5 if mmdit.qk_norm else 7.0) if vae else 2.0,
    default_size=lambda: (mmdit.sample_size * (vae.downscale if vae else 1),) * 2,
    lora_targets={
      DENOISER: ATTENTION,
      **dict.fromkeys(CLIP_ENCODERS, models.lora.TEXT_ATTENTION),
      **({T5: T5_ATTENTION} if T5 in configs else {}),
    },
    tokenize=functools.partial(tokenize, pipeline),
    encode_text=encode_text,
    condition=condition,
    denoise=denoise,
    posterior=vae and vae.posterior,
    scale=vae.scale if vae else lambda x: x,
    decode=vae.decode if vae else lambda params, x: x,
    sample_shape=functools.partial(_sample_shape, mmdit, vae),
    make_solver=functools.partial(_make_solver, scheduler, mmdit, vae),
    solver_settings=functools.partial(_solver_settings, scheduler),
    flops=functools.partial(stable_diffusion_3_flops.of_batch, configs, t5_tokens),
  )


def tokenize(
  pipeline: interop.Pipeline, captions: Sequence[str]
) -> tuple[dict[str, np.ndarray], int]:
  """Token ids of captions for each text encoder of a pipeline.

  Both CLIP encoders have the length of the first one's tokenizer, as in diffusers.

  Args:
    pipeline: Its tokenizers are used.
    captions: N strings.

  Returns:
    "input_ids", "input_ids_2" and, with T5, "input_ids_3" -> int32 `[N, L]`; and the number of
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
    length = _t5_tokens(pipeline.model_index)
    if name != T5:
      length = pipeline.tokenizers["tokenizer"].model_max_length
    tokens = interop.tokenize(pipeline.tokenizers[tokenizer], captions, length=length)
    ids[_ids(name)] = tokens.ids
    truncated = max(truncated, tokens.truncated)
  return ids, truncated


def join_hidden_states(
  clip: jax.Array, t5: jax.Array | None, *, width: int, t5_tokens: int
) -> jax.Array:
  """The text embedding: CLIP's hidden states filled up with zeros, then T5's, token after token.

  Args:
    clip: The penultimate hidden states of both CLIP encoders side by side, `[B, L, C]`.
    t5: T5's result `[B, M, D]`; None: zeros.
    width: D, the width of the text embedding.
    t5_tokens: M.

  Returns:
    `[B, L + M, D]`.

  Source: diffusers' StableDiffusion3Pipeline, `encode_prompt`.
  """
  clip = jnp.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[-1])))
  if t5 is None:
    t5 = jnp.zeros((clip.shape[0], t5_tokens, width), clip.dtype)
  return jnp.concatenate([clip, t5.astype(clip.dtype)], axis=1)


def create(model: Mapping[str, Any], captions: Sequence[str], seed: int) -> interop.Pipeline:
  """A pipeline with new random networks that denoises pixels, without T5 and its tokens.

  diffusers loads it with `StableDiffusion3Pipeline.from_pretrained(folder, vae=None,
  text_encoder_3=None, tokenizer_3=None)` and samples with `max_sequence_length=0,
  output_type="latent"`, height and width 8 times those in pixels.

  Args:
    model: "transformer", "text_encoder", "text_encoder_2" and "scheduler" -> config, with the class
      in `_class_name` (`architectures` for the text encoders).
    captions: The vocabulary of both tokenizers is made of their words.
    seed: Seed of the initialisation.

  Returns:
    `interop.Pipeline`.

  Raises:
    InputError: A component is missing or unknown, or a config is not supported.
  """
  model, networks = dict(model), (DENOISER, *CLIP_ENCODERS)
  components = {*networks, "scheduler"}
  for name in model:
    if name not in components:
      raise unknown("component in config.model", name, components)
  if missing := components - set(model):
    raise InputError(f"config.pipeline is empty and config.model lacks {sorted(missing)}")
  words = sorted({word for caption in captions for word in caption.split()})
  tokenizers = {}
  for name in CLIP_ENCODERS:
    tokenizer = interop.build_tokenizer(words, model[name]["max_position_embeddings"])
    model[name] = {
      **model[name],
      "vocab_size": len(tokenizer),
      "bos_token_id": tokenizer.bos_token_id,
      "eos_token_id": tokenizer.eos_token_id,
      "pad_token_id": tokenizer.pad_token_id,
    }
    tokenizers[name.replace("text_encoder", "tokenizer")] = tokenizer
  root = jax.random.key(seed)
  params = {
    name: models.build(model[name]).init(jax.random.fold_in(root, i))
    for i, name in enumerate(networks)
  }
  model_index = {
    "_class_name": NAME,
    "_diffusers_version": importlib.metadata.version("diffusers"),
    T5_TOKENS_FIELD: 0,
    DENOISER: ["diffusers", mmdit_config.NAME],
    "scheduler": ["diffusers", model["scheduler"]["_class_name"]],
    **{name: ["transformers", clip_config.WITH_PROJECTION] for name in CLIP_ENCODERS},
    **{name: ["transformers", "CLIPTokenizer"] for name in tokenizers},
    **{name: [None, None] for name in (AUTOENCODER, T5, "tokenizer_3")},
    **{name: [None, None] for name in ("feature_extractor", "image_encoder")},
  }
  return interop.Pipeline(model_index, model, params, tokenizers)


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


FAMILY = Family(
  build=build,
  encoder_fingerprint=encoder_fingerprint,
  create=create,
  load=functools.partial(
    interop.load_pipeline,
    networks=COMPONENTS,
    required=(DENOISER, *CLIP_ENCODERS, "scheduler"),
  ),
)


def _ids(text_encoder: str) -> str:
  """Name of the token ids of a text encoder."""
  return text_encoder.replace("text_encoder", "input_ids")


def _t5_tokens(model_index: Mapping[str, Any]) -> int:
  tokens = model_index.get(T5_TOKENS_FIELD, T5_TOKENS)
  if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= 512:
    raise InputError(
      f"model_index.json: {T5_TOKENS_FIELD} is {tokens!r}; expected an integer from 0 to 512"
    )
  return tokens


def _check_widths(configs: Mapping[str, Any], mmdit: mmdit_config.MMDiTConfig) -> None:
  """Raises InputError unless the text encoders fit the transformer."""
  clips = [clip_config.read(configs[name]) for name in CLIP_ENCODERS]
  for name, clip in zip(CLIP_ENCODERS, clips, strict=True):
    if clip.projection_dim is None:
      raise InputError(
        f"{name}/config.json: architectures names a text encoder without projection; expected "
        f"{clip_config.WITH_PROJECTION}"
      )
  pooled, width = sum(c.projection_dim for c in clips), sum(c.hidden_size for c in clips)
  if pooled != mmdit.pooled_projection_dim:
    raise InputError(
      f"transformer/config.json: pooled_projection_dim is {mmdit.pooled_projection_dim}, but the "
      f"projection_dim of text_encoder and text_encoder_2 add up to {pooled}"
    )
  if width > mmdit.joint_attention_dim:
    raise InputError(
      f"transformer/config.json: joint_attention_dim is {mmdit.joint_attention_dim}, less than "
      f"{width}, the sum of the hidden_size of text_encoder and text_encoder_2"
    )
  if T5 in configs and (d := t5_config.read(configs[T5]).d_model) != mmdit.joint_attention_dim:
    raise InputError(
      f"transformer/config.json: joint_attention_dim is {mmdit.joint_attention_dim}, but {T5} has "
      f"d_model {d}"
    )


def _lengths(pipeline: interop.Pipeline, encoders: Sequence[str], t5_tokens: int) -> dict[str, int]:
  """Context lengths by text encoder; raises InputError unless the tokenizers fit the encoders."""
  known, lengths = pipeline.tokenizers or {}, {}
  first = known["tokenizer"].model_max_length if "tokenizer" in known else None
  for name in encoders:
    read = t5_config.read if name == T5 else clip_config.read
    fields, length = read(pipeline.configs[name]), t5_tokens if name == T5 else first
    most = t5_tokens if name == T5 else fields.max_position_embeddings
    known_one = known.get(name.replace("text_encoder", "tokenizer"))
    lengths[name] = tokenizers.check(
      known_one, name, vocabulary=fields.vocab_size, positions=most, length=length
    )
  return lengths


def _check_channels(mmdit: mmdit_config.MMDiTConfig, vae: autoencoder.Autoencoder | None) -> None:
  """Raises InputError unless the transformer denoises what the autoencoder encodes."""
  allowed = (vae.latent_channels,) if vae else (1, 3)
  if mmdit.in_channels not in allowed:
    raise InputError(
      f"transformer/config.json: in_channels is {mmdit.in_channels}; expected "
      f"{' or '.join(map(str, allowed))}, the channels of a sample: pipelines for editing, whose "
      "transformers read more, are not supported"
    )
  if mmdit.out_channels != mmdit.in_channels:
    raise InputError(
      f"transformer/config.json: out_channels is {mmdit.out_channels}; expected "
      f"{mmdit.in_channels}, as many as in_channels"
    )


def _sample_shape(
  mmdit: mmdit_config.MMDiTConfig, vae: autoencoder.Autoencoder | None, size: tuple[int, int]
) -> tuple[int, int, int]:
  factor = vae.downscale if vae else 1
  multiple = factor * mmdit.patch_size
  largest = multiple * mmdit.pos_embed_max_size
  for name, value in zip(("height", "width"), size, strict=True):
    if value < multiple or value % multiple:
      raise InputError(
        f"{name} is {value}; expected a multiple of {multiple}, the pixels of a patch"
      )
    if value > largest:
      raise InputError(
        f"{name} is {value}; expected at most {largest}, as pos_embed_max_size "
        f"{mmdit.pos_embed_max_size} in transformer/config.json says"
      )
  return size[0] // factor, size[1] // factor, mmdit.in_channels


def _make_solver(
  scheduler: Mapping[str, Any],
  mmdit: mmdit_config.MMDiTConfig,
  vae: autoencoder.Autoencoder | None,
  num_steps: int,
  *,
  name: str | None = None,
  karras: bool | None = None,
  size: tuple[int, int] | None = None,
) -> diffusion.Solver:
  multiple = (vae.downscale if vae else 1) * mmdit.patch_size
  height, width = size or (mmdit.sample_size * (vae.downscale if vae else 1),) * 2
  tokens = (height // multiple) * (width // multiple)
  return flow_config.make_solver(scheduler, num_steps, name=name, karras=karras, tokens=tokens)


def _solver_settings(
  scheduler: Mapping[str, Any], name: str | None = None, karras: bool | None = None
) -> dict[str, Any]:
  name = name or flow_config.solver_name(scheduler)
  if karras is None:
    karras = name == "euler" and bool(scheduler.get("use_karras_sigmas"))
  return {"scheduler": dict(scheduler), "solver": name, "karras": karras}
