"""Scores of edits beside the images that they were made from."""

from collections.abc import Sequence

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers.base import Edits, Images, Kind, Scorer


def load_direction(
  weights: str,
  *,
  dtype: str,
  batch_size: int,
  devices,
  tokenizer: str | None = None,
  activation: str | None = None,
) -> Scorer:
  """CLIP direction similarity: whether the image changed as the captions say.

      s = cos(f(edit) - f(source), g(target caption) - g(source caption))

  with features of norm 1. An edit that equals its source, or two equal captions, have no direction
  and score 0.

  Args:
    weights: Folder or repository of a CLIPModel or of open_clip, or a file of open_clip.
    dtype: "float32" or "bfloat16".
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    tokenizer: Folder or repository of the tokenizer; None: that of `weights`.
    activation: Of a file of open_clip without a config: "gelu" or "quick_gelu".

  Returns:
    A `Scorer` of edits with captions.

  Raises:
    InputError: The weights cannot be had or do not fit.

  Source: arXiv 2108.00946, equation 2; as a metric of edits arXiv 2211.09800, section 4.1.
  """
  clip = _features(weights, dtype, batch_size, devices, tokenizer, activation)

  def scores(images: Images, prompts: Sequence[str], edits: Edits) -> np.ndarray:
    before, after = zip(*edits.captions, strict=True)
    image = clip.images(images) - clip.images(edits.sources)  # [N, d]
    return _cosine(image, clip.texts(after) - clip.texts(before))

  name = f"clip_direction ({clip.architecture})"
  return Scorer(name, scores, clip.images, needs_sources=True, needs_captions=True)


def load_source(
  weights: str, *, dtype: str, batch_size: int, devices, activation: str | None = None
) -> Scorer:
  """Similarity of an edit to its source image: cos(f(edit), f(source)) of CLIP's image features.

  Arguments, result and errors are those of `load_direction`; captions are not needed.

  Source: arXiv 2211.09800, section 4.1.
  """
  clip = _features(weights, dtype, batch_size, devices, None, activation)

  def scores(images: Images, prompts: Sequence[str], edits: Edits) -> np.ndarray:
    return _cosine(clip.images(images), clip.images(edits.sources))

  return Scorer(f"clip_source ({clip.architecture})", scores, clip.images, needs_sources=True)


def load_pixels(weights: str | None, *, dtype: str, batch_size: int, devices) -> Scorer:
  """Similarity of an edit to its source image in pixels.

      s = 1 - mean over pixels and channels of |edit - source|,   levels in [0, 1]

  Arguments are those of all scorers; none has an effect.
  """

  def scores(images: Images, prompts: Sequence[str], edits: Edits) -> np.ndarray:
    return np.array([_similarity(a, b) for a, b in zip(images, edits.sources, strict=True)])

  return Scorer("source_similarity", scores, needs_sources=True)


WEIGHTS = "a CLIP model; InstructPix2Pix measures with openai/clip-vit-large-patch14"
KINDS = {
  "clip_direction": Kind(
    load_direction,
    "Of edits: cosine of the change of the image and of its caption in CLIP's space.",
    WEIGHTS,
  ),
  "clip_source": Kind(load_source, "Of edits: cosine of edit and source in CLIP's space.", WEIGHTS),
  "source_similarity": Kind(load_pixels, "Of edits: 1 - mean |edit - source| of pixels in [0, 1]."),
}


def _features(weights, dtype, batch_size, devices, tokenizer, activation):
  from dmpo_jax.evaluation.scorers.clip_features import load_features

  return load_features(
    weights,
    dtype=dtype,
    batch_size=batch_size,
    devices=devices,
    tokenizer=tokenizer,
    activation=activation,
  )


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Cosine of rows; 0 where one is zero."""
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return np.divide(np.sum(a * b, axis=-1), norms, out=np.zeros_like(norms), where=norms > 1e-12)


def _similarity(edit: np.ndarray, source: np.ndarray) -> float:
  if edit.shape != source.shape:
    raise InputError(
      f"an edit has the shape {list(edit.shape)} and its source {list(source.shape)}; "
      "source_similarity needs the same"
    )
  return 1 - float(np.abs(edit.astype(np.float64) - source).mean() / 255)
