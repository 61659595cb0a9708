"""The batch of a step, and its random quantities from (seed, step, example id) alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.pipelines import Text
from dmpo_jax.sampling import initial_noise


class Batch(NamedTuple):
  """Examples of one step; the first axis of every array is sharded over all devices.

  Exactly one of `pixels` and `latents` is not None. Two images are (preferred, rejected), one is an
  image without preference.

  Attributes:
    text: Text inputs of the captions by name, as the pipeline's `tokenize` names them (token ids,
      int32 `[examples, L]`), or as its `encode_text` names them (cached embeddings).
    example_id: uint32 `[examples]`, the identity that random quantities derive from.
    pixels: `[examples, images, H, W, C]`, float32 in [-1, 1] or uint8.
    latents: `[examples, images, 2, h, w, Z]`, cached posteriors of the autoencoder: mean and log
      variance in its own units.
    geometry: float32 `[examples, 6]`, original height and width, top and left of the crop, target
      height and width, in pixels; None: (H, W, 0, 0, H, W) of the pixels.
    source: `[examples, H, W, C]`, float32 in [-1, 1] or uint8, the image to edit, for editing
      pipelines; beside `pixels`.
    source_latents: `[examples, h, w, Z]`, the cached mode of its posterior in the autoencoder's own
      units; beside `latents`.
    label: float32 `[examples]` in [0, 1], probability that the first image of a pair is the
      preferred one; None: 1.
    weight: float32 `[examples]`, >= 0, factor of an example's loss; None: 1. Nothing divides by the
      sum of the weights: twice the weights are twice the loss.
    timesteps: `[examples]`, times of the noise process; None: sampled.
    seeds: uint32 `[examples, images]`, seeds from which the images were sampled: each is noised
      with the noise that its sampling began with. None: noise is drawn, one for both images.
    score_gap: float32 `[examples]`, score of the first image less that of the second; None:
      unknown.
    beta_factor: float32 `[examples]`, factor of the loss's beta; `Objective.prepare` computes it.
  """

  text: Text
  example_id: jax.Array
  pixels: jax.Array | None = None
  latents: jax.Array | None = None
  geometry: jax.Array | None = None
  source: jax.Array | None = None
  label: jax.Array | None = None
  weight: jax.Array | None = None
  timesteps: jax.Array | None = None
  seeds: jax.Array | None = None
  score_gap: jax.Array | None = None
  beta_factor: jax.Array | None = None
  source_latents: jax.Array | None = None


class EditDropout(NamedTuple):
  """Probabilities with which an editing pipeline's conditioning is dropped; they sum to at most 1.

  Attributes:
    caption: Of the caption alone.
    source: Of the source image alone.
    both: Of both.

  Source: arXiv 2211.09800, section 3.2.1: 5 % each.
  """

  caption: float = 0.05
  source: float = 0.05
  both: float = 0.05


class NoiseSample(NamedTuple):
  """Random quantities of a batch; an example's images share all of them, but for prior noise.

  Attributes:
    timesteps: `[examples]`, times of the noise process.
    noise: float32 `[examples, h, w, Z]`, standard normal; `[examples, images, h, w, Z]` where each
      image has its own (`Batch.seeds`).
    dropped: bool `[examples]`, whether the caption is replaced by the empty one.
    source_dropped: bool `[examples]`, whether the source's latents are replaced by zeros; None:
      none are.
  """

  timesteps: jax.Array
  noise: jax.Array
  dropped: jax.Array
  source_dropped: jax.Array | None = None


def sample_timesteps(seed: int, step: jax.Array, batch: Batch, sampler: Callable) -> jax.Array:
  """The timestep of each example.

  A stratified sampler depends on the batch as a whole, so this takes all of it.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples of all devices.
    sampler: `(step key, example keys [examples]) -> [examples]`.

  Returns:
    `[examples]`.
  """
  step_key, keys = _keys(seed, step, batch)
  return sampler(step_key, keys[:, 0])


def sample_noise(
  seed: int,
  step: jax.Array,
  batch: Batch,
  shape: tuple[int, ...],
  dropout: float | EditDropout,
) -> NoiseSample:
  """Noise and dropout of the conditioning of each example.

  They do not depend on an example's position in the batch, on the number of devices, or on resume.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples, with timesteps.
    shape: Shape of one image's x_0, (h, w, Z).
    dropout: Probability of dropping a caption; or those of an editing pipeline. One uniform
      number u decides: the caption alone is dropped where u < caption, both where u < caption +
      both, the source alone where u < caption + both + source.

  Returns:
    `NoiseSample`.
  """
  _, keys = _keys(seed, step, batch)
  if batch.seeds is None:
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1])
  else:
    noise = initial_noise(batch.seeds.reshape(-1), shape).reshape(*batch.seeds.shape, *shape)
  if not isinstance(dropout, EditDropout):
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(keys[:, 2])
    return NoiseSample(batch.timesteps, noise, dropped)
  caption, source, both = dropout
  u = jax.vmap(jax.random.uniform)(keys[:, 2])
  return NoiseSample(
    batch.timesteps,
    noise,
    dropped=u < caption + both,
    source_dropped=(u >= caption) & (u < caption + both + source),
  )


def flipped_labels(seed: int, batch: Batch, rate: float) -> jax.Array:
  """Whether the label of each pair is flipped, the same in every epoch, as an annotator's error is.

  Args:
    seed: The run's seed.
    batch: The examples.
    rate: Probability of a flip.

  Returns:
    bool `[examples]`, independent of what the other functions sample.
  """
  # No step has this number: steps count from 0.
  root = jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1))
  keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(batch.example_id)
  return jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)


def sample_posterior_noise(
  seed: int, step: jax.Array, batch: Batch, images: int, shape: tuple[int, ...]
) -> jax.Array:
  """The noise by which latents are sampled from their posteriors, its own for each image.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples.
    images: Images of an example.
    shape: Shape of one image's latents, (h, w, Z).

  Returns:
    float32 `[examples, images, h, w, Z]`, standard normal; independent of `sample_noise`.
  """
  _, keys = _keys(seed, step, batch)
  folded = [
    jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys[:, 3]) for i in range(images)
  ]
  each = jnp.stack(folded, axis=1).reshape(-1)  # [examples * images]
  noise = jax.vmap(lambda key: jax.random.normal(key, shape))(each)
  return noise.reshape(-1, images, *shape)


def _keys(seed: int, step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """The step's key, and four keys for each example `[examples, 4]`.

  The use of the four (timesteps, noise, caption dropout, posterior) is part of the resume contract:
  another order makes another run of the same seed.
  """
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  folded = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(batch.example_id)
  return step_key, jax.vmap(lambda key: jax.random.split(key, 4))(folded)
