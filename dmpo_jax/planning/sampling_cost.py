"""The cost of sampling an image: forwards of the denoiser, and their model FLOPs."""

from typing import Any

from dmpo_jax import diffusion
from dmpo_jax.pipelines import TextToImage
from dmpo_jax.training.batch import Batch

STEPS = 50


def forwards_per_evaluation(pipeline: TextToImage) -> int:
  """Forwards of the denoiser that one evaluation takes at the guidance of the pipeline's family.

  Without guidance 1, with guidance 2, for an edit 3: that on nothing, on the source, and on source
  and instruction; 2 where the source's scale is 1, at which the first cancels.
  """
  if not diffusion.has_guidance(pipeline.default_guidance):
    return 1
  return 3 if pipeline.edits and pipeline.default_image_guidance != 1 else 2


def of_image(pipeline: TextToImage, batch: Batch, size: tuple[int, int]) -> dict[str, Any]:
  """The cost of sampling an image with the pipeline's own solver in 50 steps.

  Args:
    pipeline: The pipeline.
    batch: A batch of images or latents of that size, whose shapes are read.
    size: Height and width of the image in pixels.

  Returns:
    "steps", "forwards" of the denoiser, and "model_flops" of these forwards: encoders and decoder
    are not counted, nor is a forward on a batch dearer than its images.
  """
  images = (batch.pixels if batch.latents is None else batch.latents).shape[1]
  in_step = pipeline.flops(batch, trained=(), reference=False, lora=False)[pipeline.denoiser]
  forward = in_step // (2 * images)  # `models.flops.train_step`: two passes of a frozen denoiser
  evaluations = len(pipeline.make_solver(STEPS, size=size).steps.timestep)
  forwards = evaluations * forwards_per_evaluation(pipeline)
  return {"steps": STEPS, "forwards": forwards, "model_flops": forwards * forward}
