"""The interface of scorers: images and prompts in, one number per image out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.errors import InputError, short

# uint8 [N, H, W, 3], or a sequence of N uint8 [H, W, 3] of any sizes.
Images = np.ndarray | Sequence[np.ndarray]


class Edits(NamedTuple):
  """The source images and captions of N edits.

  Attributes:
    sources: Source image of each, see `Images`.
    captions: Captions of each image before and after the edit; None without any.
  """

  sources: Images
  captions: Sequence[tuple[str, str]] | None = None


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A score of images for prompts; higher is better.

  Attributes:
    name: Name with its variant, as tables print it.
    scores: `scores(images, prompts)` returns N numbers; `score` checks what goes in and comes out.
    embeddings: `embeddings(images)` returns image features `[N, d]` of norm 1; None without any.
    needs_prompts: Whether the score depends on the prompts.
    needs_sources: Whether it is a score of edits: `scores` takes `Edits` as a third argument.
    needs_captions: Whether it reads the captions of `Edits`.
  """

  name: str
  scores: Callable[..., np.ndarray]
  embeddings: Callable[[Images], np.ndarray] | None = None
  needs_prompts: bool = False
  needs_sources: bool = False
  needs_captions: bool = False

  def score(
    self,
    images: Images,
    prompts: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    edits: Edits | None = None,
  ) -> np.ndarray:
    """Scores of images for their prompts.

    Args:
      images: uint8 `[N, H, W, 3]`, or a sequence of N uint8 `[H, W, 3]` of any sizes.
      prompts: N prompts; not used where `needs_prompts` is False.
      names: N names of the images for messages (files, rows of a table); None: their positions.
      edits: What the images were edited from; used where `needs_sources` is True.

    Returns:
      float32 `[N]`.

    Raises:
      InputError: An image has another shape or dtype, a prompt is missing or blank, sources or
        captions of edits are missing, or a score is not finite; the message names the image.
    """
    names = _check_images(images, names)
    if self.needs_sources:
      self.check_edits(edits is not None, edits is not None and edits.captions is not None)
    if self.needs_prompts:
      self._check_prompts(prompts, names)
    if not len(images):
      return np.zeros(0, np.float32)
    arguments = (images, prompts, edits) if self.needs_sources else (images, prompts)
    scores = np.asarray(self.scores(*arguments))
    if scores.shape != (len(images),):
      raise InputError(
        f"{self.name} returned scores of the shape {list(scores.shape)} for {len(images)} images, "
        "expected one number an image; check the scorer"
      )
    scores = scores.astype(np.float32)
    for i in np.flatnonzero(~np.isfinite(scores)):
      of = f" for the prompt {short(prompts[i])}" if i < len(prompts) else ""
      raise InputError(
        f"the score {self.name} of {names[i]}{of} is {scores[i]}, expected a finite number; check "
        "the weights of the scorer, or compute in float32"
      )
    return scores

  def embed(self, images: Images) -> np.ndarray | None:
    """Image features of norm 1.

    Args:
      images: As for `score`.

    Returns:
      float32 `[N, d]`; None where the scorer has no features.

    Raises:
      InputError: An image has another shape or dtype, or a feature is not finite.
    """
    names = _check_images(images, None)
    if self.embeddings is None:
      return None
    features = np.asarray(self.embeddings(images), np.float32)
    for i in np.flatnonzero(~np.isfinite(features).all(axis=-1)):
      raise InputError(
        f"the features {self.name} of {names[i]} are not finite; check the weights of the scorer"
      )
    return features

  def check_edits(self, sources: bool, captions: bool) -> None:
    """Raises InputError where it is a score of edits and there are no sources, or no captions."""
    if self.needs_sources and not sources:
      raise InputError(
        f"{self.name} is a score of edits, and these images have no source images; give --source, "
        "or prompts with a column source_image"
      )
    if self.needs_captions and not captions:
      raise InputError(
        f"{self.name} compares captions before and after the edit; give --prompts with the columns "
        "source_caption and target_caption"
      )

  def _check_prompts(self, prompts: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(prompts, str) or len(prompts) != len(names):
      count = (
        f"the text {short(prompts)}" if isinstance(prompts, str) else f"{len(prompts)} prompts"
      )
      raise InputError(
        f"{self.name} needs one prompt an image, got {count} for {len(names)} images"
      )
    for prompt, name in zip(prompts, names, strict=True):
      if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(
          f"the prompt of {name} is {short(prompt)}; {self.name} needs a text that is not blank"
        )


class Kind(NamedTuple):
  """How scorers of one name are loaded.

  Attributes:
    load: `load(weights, *, dtype, batch_size, devices, **options)` returns a `Scorer`; its further
      keyword-only parameters are the options.
    description: The score in one line.
    weights: What `weights` names and which repository holds it; "" for a scorer without weights.
  """

  load: Callable[..., Scorer]
  description: str
  weights: str = ""


def _check_images(images: Images, names: Sequence[str] | None) -> Sequence[str]:
  """Names of images `[H, W, 3]` in uint8; raises InputError for others."""
  names = [f"image {i}" for i in range(len(images))] if names is None else names
  if len(names) != len(images):
    raise InputError(f"{len(names)} names for {len(images)} images")
  for image, name in zip(images, names, strict=True):
    shape = np.shape(image)
    if len(shape) != 3 or shape[-1] != 3 or 0 in shape:
      raise InputError(f"{name} has the shape {list(shape)}, expected [H, W, 3]: convert it to RGB")
    if getattr(image, "dtype", None) != np.uint8:
      raise InputError(
        f"{name} is {getattr(image, 'dtype', type(image).__name__)}, expected uint8 levels from 0 "
        "to 255 (sampling.images.to_uint8)"
      )
  return names
