"""The sampler of a pipeline, and what it is asked to draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import diffusion, interop, models, pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import stable_diffusion

Size = tuple[int, int]


def sampler_of(
  pipeline: interop.Pipeline,
  *,
  num_steps: int,
  guidance: float,
  guidance_rescale: float = 0.0,
  size: Size | None = None,
  solver: str | None = None,
  karras: bool | None = None,
  negative: str | None = None,
  dtype: str | None = None,
  compute: models.Compute = models.Compute(),
) -> pipelines.Sampler:
  """A compiled sampler for pipelines of this one's configs, with their parameters as an argument.

  Args:
    pipeline: The pipeline; its parameters are not read.
    num_steps: Steps of the solver.
    guidance: Scale of classifier-free guidance; 1 is none.
    guidance_rescale: Strength of `diffusion.rescale`.
    size: Height and width in pixels; by default `default_size`.
    solver: As for `diffusion.make_solver`.
    karras: As for `diffusion.make_solver`.
    negative: The negative prompt, of which only matters whether there is one: without it, a
      pipeline with force_zeros_for_empty_prompt takes zeros for the encoded null prompt.
    dtype: Of the computation, by default `default_dtype`. The autoencoder computes in float32
      unless its config sets force_upcast to false.
    compute: Attention kernels and sharding of the networks.

  Returns:
    A `pipelines.Sampler`.

  Raises:
    InputError: The pipeline is of a kind that is not drawn here, or a value does not fit it.
  """
  unet = pipeline.configs["unet"]
  dtype = jnp.dtype(dtype or default_dtype())
  has_sizes = unet.get("addition_embed_type") == "text_time"
  if has_sizes != ("text_encoder_2" in pipeline.configs):
    raise InputError(
      f"unet/config.json: addition_embed_type is {unet.get('addition_embed_type')!r} beside "
      f"{'one text encoder' if has_sizes else 'two text encoders'}; pipelines of SDXL have "
      "'text_time' and two, all others neither"
    )
  encoders = ("text_encoder", "text_encoder_2")[: 1 + has_sizes]
  height, width = size or default_size(pipeline)
  channels, decode = unet["in_channels"], None
  if "vae" in pipeline.configs:
    vae = pipeline.configs["vae"]
    autoencoder = models.build_autoencoder(vae, compute=compute)
    factor, wanted = autoencoder.downscale, (vae.get("latent_channels", 4),)
    dtype_of_vae = jnp.float32 if vae.get("force_upcast", True) else dtype

    def decode(params: Any, latents: jax.Array) -> jax.Array:
      images = autoencoder.decode(params, autoencoder.unscale(latents), dtype=dtype_of_vae)
      return images.astype(jnp.float32)

  else:
    factor, wanted = 1, (1, 3)
  if channels not in wanted:
    raise InputError(
      f"unet/config.json: in_channels is {channels}; expected {' or '.join(map(str, wanted))}, the "
      "channels of what is drawn: networks that read more, for editing, are not drawn here"
    )
  for name, value in (("height", height), ("width", width)):
    if value < factor or value % factor:
      raise InputError(
        f"{name} is {value}; expected a multiple of {factor}, the pixels of a latent"
      )
  return pipelines.make_sampler(
    pipelines.Networks(
      unet=models.build(unet, compute=compute).apply,
      text_encoders=tuple(
        models.build(pipeline.configs[name], compute=compute).apply for name in encoders
      ),
      decode=decode,
    ),
    diffusion.make_solver(scheduler_config(pipeline), num_steps, name=solver, karras=karras),
    shape=(height // factor, width // factor, channels),
    guidance=guidance,
    guidance_rescale=guidance_rescale,
    zero_null=takes_zeros(pipeline, negative),
    dtype=dtype,
  )


def requests_for(
  pipeline: interop.Pipeline,
  prompts: Sequence[str],
  seeds: np.ndarray,
  *,
  negative: str | None = None,
  size: Size | None = None,
  original: Size | None = None,
  crop: Size = (0, 0),
  target: Size | None = None,
) -> tuple[pipelines.Requests, int]:
  """What is to be drawn, as the pipeline's sampler takes it.

  Args:
    pipeline: The pipeline, for its tokenizers.
    prompts: One for each image, N.
    seeds: As many, integers from 0 to 2^32 - 1.
    negative: The negative prompt of all, by default the empty one.
    size, original, crop, target: Of SDXL, as for `pipelines.size_ids`.

  Returns:
    `pipelines.Requests`, and how many of the prompts were longer than the context and were cut.

  Raises:
    InputError: The pipeline has no tokenizer for one of its text encoders.
  """
  ids, truncated = stable_diffusion.tokenize(pipeline, prompts)
  nulls, _ = stable_diffusion.tokenize(pipeline, [negative or ""])
  null_ids = tuple(np.repeat(row, len(prompts), axis=0) for row in nulls.values())
  time_ids = None
  if "text_encoder_2" in pipeline.configs:
    size = size or default_size(pipeline)
    row = pipelines.size_ids(size, original=original, crop=crop, target=target)
    time_ids = np.repeat(row[None], len(prompts), axis=0)  # [N, 6]
  requests = pipelines.Requests(
    np.asarray(seeds), tuple(ids.values()), null_ids, time_ids, null_time_ids=time_ids
  )
  return requests, truncated


def default_size(pipeline: interop.Pipeline) -> Size:
  """Height and width in pixels that the UNet was trained at.

  Raises:
    InputError: Its config does not say.
  """
  size = pipeline.configs["unet"].get("sample_size")
  if size is None:
    raise InputError("unet/config.json has no sample_size: give height and width")
  vae = pipeline.configs.get("vae")
  factor = 1 if vae is None else models.build_autoencoder(vae).downscale
  height, width = (size, size) if isinstance(size, int) else size
  return height * factor, width * factor


def default_guidance(pipeline: interop.Pipeline) -> float:
  """diffusers' scales, 7.5 and (for two text encoders) 5; 2 for pipelines that denoise pixels."""
  if "vae" not in pipeline.configs:
    return 2.0
  return 5.0 if "text_encoder_2" in pipeline.configs else 7.5


def default_dtype() -> str:
  """float32 on CPUs, which gain nothing from less, otherwise bfloat16."""
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def scheduler_config(pipeline: interop.Pipeline) -> Mapping[str, Any]:
  """The scheduler's config as diffusers' pipeline of the same class uses it.

  StableDiffusionPipeline sets two fields when it is loaded, whatever the file says.
  """
  config = pipeline.configs["scheduler"]
  if pipeline.model_index.get("_class_name") == "StableDiffusionPipeline":
    return {**config, "steps_offset": 1, "clip_sample": False}
  return config


def takes_zeros(pipeline: interop.Pipeline, negative: str | None) -> bool:
  """Whether the null prompt is zeros: for SDXL, where the index says so and no prompt is given."""
  forced = pipeline.model_index.get("force_zeros_for_empty_prompt", True)
  return negative is None and "text_encoder_2" in pipeline.configs and bool(forced)


def cast(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
  """The parameters in the computation's dtype, but the autoencoder's as they are."""
  wanted = jnp.dtype(dtype)

  def to_wanted(leaf: Any) -> Any:
    return leaf if leaf.dtype == wanted else leaf.astype(wanted)

  return {
    name: tree if name == "vae" else jax.tree.map(to_wanted, tree) for name, tree in params.items()
  }
