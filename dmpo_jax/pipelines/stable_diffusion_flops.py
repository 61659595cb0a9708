"""Model FLOPs of a train step of Stable Diffusion, by component."""

from collections.abc import Iterable, Mapping
from typing import Any

from dmpo_jax.models import flops
from dmpo_jax.models.clip import flops as clip_flops
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.models.unet import flops as unet_flops
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.models.vae import flops as vae_flops

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def of_batch(
  configs: Mapping[str, Any], batch: Any, *, trained: Iterable[str], reference: bool, lora: bool
) -> dict[str, int]:
  """Model FLOPs of one example of a batch; components whose results it carries do not run.

  Args:
    configs: The pipeline's configs by component.
    batch: A `training.Batch`, for the shapes of its pixels or latents and of its text.
    trained: Components that are trained.
    reference: Whether the frozen reference is evaluated too.
    lora: Whether LoRAs of the trained components are trained instead of all their parameters.

  Returns:
    Component -> FLOPs; their sum is the cost of an example.

  Raises:
    InputError: A trained component is missing or cached.
  """
  cached = []
  if batch.latents is None:
    images, height, width = batch.pixels.shape[1:4]
  else:
    cached.append("vae")
    downscale = vae_config.read(configs["vae"]).downscale
    images, (height, width) = batch.latents.shape[1], batch.latents.shape[3:5]
    height, width = height * downscale, width * downscale
  if "encoder_hidden_states" in batch.text:
    cached += [name for name in TEXT_ENCODERS if name in configs]
    tokens = batch.text["encoder_hidden_states"].shape[1]
  else:
    tokens = batch.text["input_ids"].shape[1]
  return per_example(
    configs,
    height=height,
    width=width,
    tokens=tokens,
    images=images,
    trained=trained,
    reference=reference,
    lora=lora,
    cached=cached,
  )


def per_example(
  configs: Mapping[str, Mapping[str, Any]],
  *,
  height: int,
  width: int,
  tokens: int,
  images: int = 2,
  trained: Iterable[str] = ("unet",),
  reference: bool = True,
  lora: bool = False,
  cached: Iterable[str] = (),
) -> dict[str, int]:
  """Model FLOPs of one example in a train step, by component.

  The UNet and the autoencoder run once per image, a text encoder once per caption. The autoencoder
  of an editing pipeline, whose UNet reads twice the channels it returns, encodes the source too.
  With `unet` trained, a pair of `dpo` costs 3·2 + 2 = 8 forward passes of the UNet, one of `mapo`
  (no reference) 6, and an image of `sft` 3; as LoRA a pair of `dpo` costs 6.

  Args:
    configs: The pipeline's configs by component: unet, text_encoder, text_encoder_2, vae.
    height: Height of the images in pixels.
    width: Width of the images in pixels.
    tokens: Length of the captions, padding included.
    images: Images per example: 2 of a pair.
    trained: Components that are trained.
    reference: Whether the frozen reference is evaluated too.
    lora: Whether LoRAs of the trained components are trained instead of all their parameters.
    cached: Components whose results are stored with the data, so that the step does not run them.

  Returns:
    Component -> FLOPs; their sum is the cost of an example.

  Raises:
    InputError: A network is not supported, or a trained component is missing or cached.
  """
  forwards = {}
  latents = (height, width)
  if "vae" in configs:
    unet = unet_config.read(configs["unet"])
    encoded = images + (unet.in_channels == 2 * unet.out_channels)
    forwards["vae"] = encoded * vae_flops.encode(configs["vae"], height, width)
    scale = vae_config.read(configs["vae"]).downscale
    latents = (height // scale, width // scale)
  for name in TEXT_ENCODERS:
    if name in configs:
      forwards[name] = clip_flops.forward(configs[name], tokens)
  forwards["unet"] = images * unet_flops.forward(configs["unet"], *latents, tokens)
  return flops.train_step(
    forwards, "unet", trained=trained, reference=reference, lora=lora, cached=cached
  )
