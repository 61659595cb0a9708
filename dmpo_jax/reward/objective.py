"""PickScore's loss: the preference of two images of a caption by their similarity to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import models
from dmpo_jax.models.clip.build import CLIP
from dmpo_jax.parallel import sharding
from dmpo_jax.training.batch import Batch

SCORER, TOKENS = "scorer", "input_ids"


class Normalisation(NamedTuple):
  """Mean and standard deviation of each channel in [0, 1], as the preprocessor's file has them."""

  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """uint8 `[..., 3]` as float32: (pixels / 255 - mean) / std."""
    mean, std = (jnp.asarray(x, jnp.float32) for x in (self.mean, self.std))
    shape = (1,) * (pixels.ndim - 1) + (3,)
    return (pixels.astype(jnp.float32) / 255 - mean.reshape(shape)) / std.reshape(shape)


def build(config: dict[str, Any], mesh: jax.sharding.Mesh | None) -> CLIP:
  """The model's functions, sharded over a mesh as in training; None: one device."""
  placement = None if mesh is None else sharding.placement(mesh)
  return models.build(config, compute=models.Compute(placement=placement))


def scores(
  clip: CLIP, params: Any, images: jax.Array, ids: jax.Array, *, dtype: Any = jnp.float32
) -> jax.Array:
  """Scores of the images of each caption.

      score = exp(logit_scale) cos(image, text)

  Args:
    clip: The model's functions.
    params: Its parameters.
    images: Normalised, `[P, n, S, S, 3]`.
    ids: Token ids of the captions, `[P, L]`.
    dtype: Compute dtype of the encoders.

  Returns:
    float32 `[P, n]`.

  Source: arXiv 2305.01569, equation 1.
  """
  flat = images.reshape(-1, *images.shape[2:])
  image = _unit(clip.encode_image(params, flat, dtype=dtype)).reshape(*images.shape[:2], -1)
  text = _unit(clip.encode_text(params, ids, dtype=dtype))[:, None]  # [P, 1, D]
  return jnp.exp(params["logit_scale"].astype(jnp.float32)) * (image * text).sum(-1)


def preference_loss(scores: jax.Array, label: jax.Array) -> jax.Array:
  """Cross entropy of the preference; a tie is the label 1/2.

      P(0) = exp(s_0) / (exp(s_0) + exp(s_1)),   loss = -p log P(0) - (1 - p) log P(1)

  Args:
    scores: float32 `[P, 2]`.
    label: p, the probability that image 0 is preferred, `[P]`.

  Returns:
    float32 `[P]`.

  Source: arXiv 2305.01569, section 3, without its entropy of the label, which is constant.
  """
  logit = scores[:, 0] - scores[:, 1]
  return jax.nn.softplus(-logit) * label + jax.nn.softplus(logit) * (1 - label)


def make_objective(
  clip: CLIP,
  normalise: Normalisation,
  *,
  seed: int,
  shift: int = 0,
  label_smoothing: float = 0.0,
  dtype: Any = jnp.float32,
) -> Callable:
  """The training objective, as `training.step.make_step` takes it.

  Args:
    clip: The model's functions.
    normalise: Of its preprocessor.
    seed: The run's seed.
    shift: Both images of a pair are shifted alike by up to so many pixels in either direction;
      pixels at the edge are repeated.
    label_smoothing: s: the label p becomes (1 - s) p + s (1 - p).
    dtype: Compute dtype of the encoders.

  Returns:
    `(trained, frozen, reference, batch, step) -> (loss [pairs], metrics [pairs])`.
  """

  def objective(trained, frozen, reference, batch: Batch, step):
    del frozen, reference
    pixels = shifted(batch.pixels, seed, step, batch.example_id, shift) if shift else batch.pixels
    each = scores(clip, trained[SCORER], normalise(pixels), batch.text[TOKENS], dtype=dtype)
    label = jnp.ones_like(each[:, 0]) if batch.label is None else batch.label
    target = (1 - label_smoothing) * label + label_smoothing * (1 - label)
    loss = preference_loss(each, target)
    if batch.weight is not None:
      loss = loss * batch.weight
    gap = each[:, 0] - each[:, 1]
    right = jnp.where(label == 0.5, 0.5, (gap > 0) + 0.5 * (gap == 0))
    return loss, {"loss": loss, "accuracy": right, "gap": gap}

  return objective


def shifted(
  pixels: jax.Array, seed: int, step: jax.Array, example_id: jax.Array, most: int
) -> jax.Array:
  """Pairs shifted by up to `most` pixels, from (seed, step, example id) alone.

  Args:
    pixels: `[P, n, H, W, C]`; the images of an example are shifted alike.
    seed: The run's seed.
    step: int32 scalar.
    example_id: uint32 `[P]`.
    most: Largest shift in either direction, in pixels.

  Returns:
    An array like `pixels`.
  """
  root = jax.random.fold_in(jax.random.key(seed), step)

  def one(images: jax.Array, number: jax.Array) -> jax.Array:
    key = jax.random.fold_in(root, number)
    top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (0, top, left, 0), images.shape)

  return jax.vmap(one)(pixels, example_id)


def _unit(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))
