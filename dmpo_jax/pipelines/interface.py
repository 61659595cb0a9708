"""The interface of a model family, by which training, sampling, caching and planning use it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dmpo_jax import diffusion, interop, models

# Component -> parameter tree.
Params = Mapping[str, Any]
# Inputs of text encoders, or their cached results, by name; arrays [B, ...].
Text = dict[str, jax.Array]
# Everything that a denoiser is conditioned on, by name; arrays [B, ...].
Conditioning = dict[str, jax.Array]


class TextToImage(NamedTuple):
  """A text-to-image pipeline as pure functions of `{component: parameter tree}`.

  x_0, the clean samples that are noised and denoised, are scaled latents, or pixels in [-1, 1]
  where the pipeline has no autoencoder.

  Attributes:
    components: Names of all components that the family can have. Their order fixes the random
      initialisation of LoRAs: append, never reorder.
    denoiser: Name of the component that denoises.
    text_encoders: Names of the text encoders of this pipeline.
    autoencoder: Name of the autoencoder; None where the denoiser sees pixels.
    process: The noise process.
    image_channels: Channels of the images, in pixels.
    text_shapes: Shapes and dtypes of one caption's `tokenize` result, by name.
    uses_geometry: Whether `condition` needs `geometry`.
    zero_null_text: Whether an empty caption conditions on zeros in place of its encoding.
    default_guidance: Scale of classifier-free guidance that samples of this family are published
      with.
    default_size: `() -> (height, width)` in pixels that the denoiser was trained at; raises
      InputError where its config does not say.
    lora_targets: Component -> glob patterns of the layers that a LoRA adapts by default.
    tokenize: `(captions) -> (Text of N rows, captions that lost words at their end)`.
    encode_text: `(params, Text) -> Conditioning`, float; cached results pass through in float32.
    condition: `(Conditioning, geometry [B, 6] or None, source [B, h, w, Z] or None) ->
      Conditioning` with everything else that the denoiser is conditioned on. Geometry is the
      original height and width, the top and left of the crop, and the target height and width, in
      pixels. Source is the result of `encode_source`, zeros for a dropped source image.
    denoise: `(params, x_t [B, h, w, Z], t [B], Conditioning) -> prediction [B, h, w, Z]`.
    posterior: `(params, images [B, H, W, C] in [-1, 1]) -> models.Posterior`; None without an
      autoencoder.
    scale: Latents in the autoencoder's units -> x_0.
    decode: `(params, x_0 [B, h, w, Z]) -> images, float32 [B, H, W, C]` near [-1, 1].
    sample_shape: `(height, width) in pixels -> (h, w, Z)` of one x_0; raises InputError where the
      pipeline cannot sample that size.
    make_solver: `(num_steps, *, name=None, karras=None, size=None) -> diffusion.Solver`; by default
      the pipeline's own, for images (height, width) of `default_size`.
    solver_settings: `(name=None, karras=None) -> dict` in JSON: the choices that `make_solver`
      makes, for a manifest.
    flops: `(batch, *, trained, reference, lora) -> {component: model FLOPs of one example in a
      train step}`; of the batch only shapes are read, see `training.batch.Batch`.
    encode_source: `(params, source images [B, H, W, C] in [-1, 1]) -> [B, h, w, Z]`, float32, the
      source in the form that `condition` takes; None where the pipeline edits no images.
    default_image_guidance: Scale of guidance by the source that edits are published with.
  """

  components: tuple[str, ...]
  denoiser: str
  text_encoders: tuple[str, ...]
  autoencoder: str | None
  process: diffusion.Process
  image_channels: int
  text_shapes: Mapping[str, jax.ShapeDtypeStruct]
  uses_geometry: bool
  zero_null_text: bool
  default_guidance: float
  default_size: Callable[[], tuple[int, int]]
  lora_targets: Mapping[str, Sequence[str]]
  tokenize: Callable[[Sequence[str]], tuple[dict[str, Any], int]]
  encode_text: Callable[[Params, Text], Conditioning]
  condition: Callable[[Conditioning, jax.Array | None, jax.Array | None], Conditioning]
  denoise: Callable[[Params, jax.Array, jax.Array, Conditioning], jax.Array]
  posterior: Callable[[Params, jax.Array], models.Posterior] | None
  scale: Callable[[jax.Array], jax.Array]
  decode: Callable[[Params, jax.Array], jax.Array]
  sample_shape: Callable[[tuple[int, int]], tuple[int, int, int]]
  make_solver: Callable[..., diffusion.Solver]
  solver_settings: Callable[..., dict[str, Any]]
  flops: Callable[..., dict[str, int]]
  encode_source: Callable[[Params, jax.Array], jax.Array] | None = None
  default_image_guidance: float = 1.5

  @property
  def edits(self) -> bool:
    """Whether the denoiser is conditioned on a source image."""
    return self.encode_source is not None


class Family(NamedTuple):
  """How pipelines of a family are read, made, built and written.

  Attributes:
    build: `(pipeline, *, dtype="float32", compute=models.Compute()) -> TextToImage`. `dtype` is
      the compute dtype of denoiser and text encoders.
    encoder_fingerprint: `(pipeline, *, embeddings) -> dict` in JSON: everything that cached latents
      and, if `embeddings`, cached text embeddings depend on beside images and captions.
    create: `(model section of a config, captions, seed) -> pipeline` with new random networks; None
      where the family offers none.
    load: Reads a pipeline; arguments of `interop.load_pipeline`.
    save: Writes a pipeline; arguments of `interop.save_pipeline`.
  """

  build: Callable[..., TextToImage]
  encoder_fingerprint: Callable[..., dict[str, Any]]
  create: Callable[..., interop.Pipeline] | None = None
  load: Callable[..., interop.Pipeline] = interop.load_pipeline
  save: Callable[..., None] = interop.save_pipeline
