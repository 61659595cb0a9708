"""CLIP score: the similarity of an image and its prompt."""

import numpy as np

from dmpo_jax.errors import unknown
from dmpo_jax.evaluation.scorers.base import Kind, Scorer

VARIANTS = ("cosine", "hessel")


def load(
  weights: str,
  *,
  dtype: str,
  batch_size: int,
  devices,
  variant: str = "cosine",
  tokenizer: str | None = None,
  activation: str | None = None,
) -> Scorer:
  """CLIP score of an image and its prompt.

      cosine:  s = cos(text, image)
      hessel:  s = 2.5 max(cos("A photo depicts " + text, image), 0)

  Diffusion-DPO takes the cosine of ViT-H/14 of LAION, ImageReward that of OpenAI's ViT-L/14, and
  the paper on CLIPScore "hessel" with ViT-B/32. Scores of different models do not compare, so the
  scorer's name has the model and the variant.

  Args:
    weights: Folder or repository of a CLIPModel or of open_clip, or a file of open_clip.
    dtype: "float32" or "bfloat16".
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    variant: "cosine" or "hessel".
    tokenizer: Folder or repository of the tokenizer; None: that of `weights`.
    activation: Of a file of open_clip without a config: "gelu" or "quick_gelu".

  Returns:
    A `Scorer` with features.

  Raises:
    InputError: The variant is unknown, or the weights cannot be had or do not fit.

  Source: arXiv 2104.08718, equation 1 ("hessel").
  """
  from dmpo_jax.evaluation.scorers.clip_features import load_features

  if variant not in VARIANTS:
    raise unknown("variant of clip_score", variant, VARIANTS)
  clip = load_features(
    weights,
    dtype=dtype,
    batch_size=batch_size,
    devices=devices,
    tokenizer=tokenizer,
    activation=activation,
    prefix="A photo depicts " if variant == "hessel" else "",
  )

  def hessel(images, prompts):
    return 2.5 * np.maximum(clip.cosine(images, prompts), 0)

  scores = hessel if variant == "hessel" else clip.cosine
  name = f"clip_score ({clip.architecture}, {variant})"
  return Scorer(name, scores, clip.images, needs_prompts=True)


KIND = Kind(
  load,
  "CLIP score: cosine of image and prompt; variant=hessel: 2.5 max(cosine, 0), after CLIPScore.",
  "a CLIP model; published ones are openai/clip-vit-large-patch14, openai/clip-vit-base-patch32, "
  "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
)
