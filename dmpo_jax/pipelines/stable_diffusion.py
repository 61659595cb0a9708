"""From token ids to what the network is told of a prompt."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import stable_diffusion

Conditioning = dict[str, jax.Array]
Params = Mapping[str, Any]


class Requests(NamedTuple):
  """N images to be drawn, one row each.

  Attributes:
    seeds: uint32 `[N]`.
    ids: int32 `[N, L]` for each text encoder: the tokens of the prompts.
    null_ids: The same of the negative or empty prompts.
    time_ids: float32 `[N, 6]` for networks that are told sizes (SDXL), otherwise None: height and
      width of the original image, top and left of the crop, height and width of the target, pixels.
    null_time_ids: The same beside the negative prompts.
  """

  seeds: np.ndarray
  ids: tuple[np.ndarray, ...]
  null_ids: tuple[np.ndarray, ...]
  time_ids: np.ndarray | None = None
  null_time_ids: np.ndarray | None = None


def encode(
  text_encoders: Sequence[Callable[..., Any]],
  params: Mapping[str, Any],
  ids: Sequence[jax.Array],
  *,
  dtype: Any,
) -> Conditioning:
  """Encodes prompts as the UNet of the pipeline expects it.

  One encoder (SD1.5, SD2.1): its last hidden state. Two (SDXL): their penultimate hidden states
  side by side, and the second one's projected end token.

  Args:
    text_encoders: `models.Model.apply` of the one or two encoders.
    params: Parameters with "text_encoder" and "text_encoder_2".
    ids: int32 `[B, L]` for each encoder.
    dtype: Of the computation and the result.

  Returns:
    "encoder_hidden_states" `[B, L, D]` and, of two encoders, "text_embeds" `[B, P]`.

  Source: diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline, `encode_prompt`.
  """
  names = ("text_encoder", "text_encoder_2")
  outputs = [
    encoder(params[name], tokens, dtype=dtype)
    for encoder, name, tokens in zip(text_encoders, names, ids, strict=False)
  ]
  if len(outputs) == 1:
    return {"encoder_hidden_states": outputs[0].last_hidden_state}
  hidden = jnp.concatenate([output.penultimate for output in outputs], axis=-1)  # [B, L, D]
  return {"encoder_hidden_states": hidden, "text_embeds": outputs[1].text_embeds}


def size_ids(
  size: tuple[int, int],
  *,
  original: tuple[int, int] | None = None,
  crop: tuple[int, int] = (0, 0),
  target: tuple[int, int] | None = None,
) -> np.ndarray:
  """What SDXL is told of sizes.

  Args:
    size: Height and width of the image to be drawn, in pixels.
    original: Height and width that the training image had before it was scaled; by default `size`.
    crop: Top and left of the crop that was trained on.
    target: Height and width that it was scaled for; by default `size`.

  Returns:
    float32 `[6]`, a row of `Requests.time_ids`.

  Source: arXiv 2307.01952, section 2.2.
  """
  return np.asarray([*(original or size), *crop, *(target or size)], np.float32)


class Networks(NamedTuple):
  """The forward functions of a pipeline; `params` of the last two holds all components.

  Attributes:
    unet: `(unet's params, noisy [B, H, W, C], timesteps [B], context [B, L, D]) -> [B, H, W, C]`.
      A UNet that is told sizes also takes `text_embeds` `[B, P]` and `time_ids` `[B, 6]`.
    text: `(params, input_ids [B, L] for each text encoder)` -> "encoder_hidden_states" `[B, L, D]`
      and, of two encoders, "text_embeds" `[B, P]`.
    moments: `(params, images [B, H, W, C])` -> mean and log variance `[B, h, w, Z]` of their
      latents; None where the UNet denoises the images themselves.
    scale: Those latents -> the ones that the UNet sees.
  """

  unet: Callable[..., jax.Array]
  text: Callable[[Params, tuple[jax.Array, ...]], Conditioning]
  moments: Callable[[Params, jax.Array], models.Moments] | None = None
  scale: Callable[[jax.Array], jax.Array] | None = None


def tokenize(pipeline: interop.Pipeline, captions: list[str]) -> tuple[dict[str, np.ndarray], int]:
  """The tokens of captions for each text encoder of a pipeline.

  Args:
    pipeline: For its tokenizers.
    captions: N strings.

  Returns:
    "input_ids" and, where there is a second text encoder, "input_ids_2" -> int32 `[N, L]`, as
    `Batch` names them; and how many captions lost words at their end.

  Raises:
    InputError: The pipeline has no tokenizer for one of its text encoders.
  """
  ids, truncated = {}, 0
  for suffix in ("", "_2"):
    if f"text_encoder{suffix}" not in pipeline.configs:
      continue
    tokenizer = getattr(pipeline, f"tokenizer{suffix}")
    if tokenizer is None:
      raise InputError(f"the pipeline has a text_encoder{suffix} and no tokenizer{suffix}")
    tokens = interop.tokenize(tokenizer, captions)
    ids[f"input_ids{suffix}"] = tokens.ids
    truncated = max(truncated, tokens.truncated)
  return ids, truncated


def make_networks(
  pipeline: interop.Pipeline,
  dtype: str = "float32",
  *,
  compute: models.Compute = models.Compute(),
) -> Networks:
  """The forward functions of a pipeline.

  Args:
    pipeline: For its configs.
    dtype: In which UNet and text encoders compute; parameters are cast where they are used. The
      autoencoder computes in float32, unless its force_upcast is false.
    compute: Attention kernels, rematerialisation (of the UNet alone) and sharding.

  Returns:
    `Networks`.

  Raises:
    InputError: A network is not supported.
  """
  encoders = [name for name in ("text_encoder", "text_encoder_2") if name in pipeline.configs]
  frozen = dataclasses.replace(compute, remat="none")
  networks = Networks(
    unet=functools.partial(
      models.build(pipeline.configs["unet"], compute=compute).apply, dtype=dtype
    ),
    text=functools.partial(
      stable_diffusion.encode,
      [models.build(pipeline.configs[name], compute=frozen).apply for name in encoders],
      dtype=dtype,
    ),
  )
  if "vae" not in pipeline.configs:
    return networks
  vae = pipeline.configs["vae"]
  autoencoder = models.build_autoencoder(vae, compute=frozen)
  dtype_of_vae = jnp.float32 if vae.get("force_upcast", True) else dtype

  def moments(params: Params, images: jax.Array) -> models.Moments:
    height, width = images.shape[1:3]
    if height % autoencoder.downscale or width % autoencoder.downscale:
      raise InputError(
        f"the images are {height}x{width}; height and width must be multiples of "
        f"{autoencoder.downscale}, the pixels of a latent"
      )
    return autoencoder.encode(params["vae"], images, dtype=dtype_of_vae)

  return networks._replace(moments=moments, scale=autoencoder.scale)
