"""The sampler of a loaded pipeline."""

from dmpo_jax import diffusion, interop, models, sampling
from dmpo_jax.errors import InputError


def sampler_of(pipeline: interop.Pipeline, *, num_steps: int, guidance: float) -> sampling.Sampler:
  """A compiled sampler for pipelines of this one's configs, with their parameters as an argument.

  Raises:
    InputError: The pipeline denoises the latents of a VAE, or has channels that are no picture's.
  """
  if "vae" in pipeline.configs:
    raise InputError(
      "this pipeline denoises the latents of a VAE; only those that denoise pixels are drawn here"
    )
  unet = pipeline.configs["unet"]
  size, channels = unet["sample_size"], unet["in_channels"]
  if channels not in (1, 3):
    raise InputError(f"unet/config.json: in_channels is {channels}; a picture has 1 or 3")
  height, width = (size, size) if isinstance(size, int) else size
  return sampling.make_sampler(
    models.build(unet).apply,
    models.build(pipeline.configs["text_encoder"]).apply,
    diffusion.make_solver(pipeline.configs["scheduler"], num_steps),
    shape=(height, width, channels),
    guidance=guidance,
  )
