"""Model FLOPs of a train step of Stable Diffusion 3, by component."""

from collections.abc import Iterable, Mapping
from typing import Any

from dmpo_jax.models import flops
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.clip import flops as clip_flops
from dmpo_jax.models.mmdit import flops as mmdit_flops
from dmpo_jax.models.t5 import flops as t5_flops
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.models.vae import flops as vae_flops

CLIP_ENCODERS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"


def of_batch(
  configs: Mapping[str, Any],
  t5_tokens: int,
  batch: Any,
  *,
  trained: Iterable[str],
  reference: bool,
  lora: bool,
) -> dict[str, int]:
  """Model FLOPs of one example of a batch; components whose results it carries do not run.

  Args:
    configs: The pipeline's configs by component.
    t5_tokens: Length of T5's part of a caption, which is there without T5 too.
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
  downscale = vae_config.read(configs["vae"]).downscale if "vae" in configs else 1
  if batch.latents is None:
    images, height, width = batch.pixels.shape[1:4]
  else:
    cached.append("vae")
    images, (height, width) = batch.latents.shape[1], batch.latents.shape[3:5]
    height, width = height * downscale, width * downscale
  if "pooled_projections" in batch.text:
    cached += [name for name in (*CLIP_ENCODERS, T5) if name in configs]
  length = clip_config.read(configs[CLIP_ENCODERS[0]]).max_position_embeddings
  forwards = {name: clip_flops.forward(configs[name], length) for name in CLIP_ENCODERS}
  if T5 in configs:
    forwards[T5] = t5_flops.forward(configs[T5], t5_tokens)
  if "vae" in configs:
    forwards["vae"] = images * vae_flops.encode(configs["vae"], height, width)
  forwards["transformer"] = images * mmdit_flops.forward(
    configs["transformer"], height // downscale, width // downscale, length + t5_tokens
  )
  return flops.train_step(
    forwards, "transformer", trained=trained, reference=reference, lora=lora, cached=cached
  )
