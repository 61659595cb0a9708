"""What a step is given, and what it draws for it from (seed, step, example id) alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
  """Examples of one step; the first axis is the one that devices share.

  Attributes:
    images: float32 `[examples, images, H, W, C]` in [-1, 1], or uint8 as they were decoded, see
      `to_floats`; two images are (preferred, rejected), one is an image without preference. Or
      moments `[examples, images, 2, h, w, Z]` of images that were encoded before: mean and log
      variance of their latents in the autoencoder's own units.
    input_ids: int32 `[examples, L]`, the caption's tokens.
    example_id: uint32 `[examples]`, the identity that random draws derive from.
    label: float32 `[examples]` in [0, 1], probability that the first image of a pair is the
      preferred one; None: it is.
    weight: float32 `[examples]`, >= 0, what the loss of an example is multiplied by; None: 1.
      Nothing divides by the sum of the weights: twice the weights are twice the loss.
    input_ids_2: int32 `[examples, L]`, the caption's tokens for the second text encoder, where
      there is one.
    time_ids: float32 `[examples, 6]`, what a UNet that is told sizes (SDXL) hears: height and width
      of the original images, top and left of the crop, height and width they were scaled for, in
      pixels; None: (H, W, 0, 0, H, W). Other UNets do not look at it.
    embeddings: `[examples, L, D]`, what the text encoders gave for the caption; None: they run.
    pooled: `[examples, P]`, the same of SDXL's pooled embedding, beside `embeddings`.
    timesteps: int32 `[examples]`; None: drawn.
  """

  images: jax.Array
  input_ids: jax.Array
  example_id: jax.Array
  label: jax.Array | None = None
  weight: jax.Array | None = None
  input_ids_2: jax.Array | None = None
  time_ids: jax.Array | None = None
  embeddings: jax.Array | None = None
  pooled: jax.Array | None = None
  timesteps: jax.Array | None = None


class Draws(NamedTuple):
  """The random quantities of a batch; an example's images share all of them.

  Attributes:
    timesteps: int32 `[examples]`.
    noise: float32 `[examples, H, W, C]`, standard normal.
    dropped: bool `[examples]`, whether the caption is replaced by the empty one.
  """

  timesteps: jax.Array
  noise: jax.Array
  dropped: jax.Array


def draw_timesteps(seed: int, step: jax.Array, batch: Batch, timesteps: Callable) -> jax.Array:
  """The timestep of each example, from (seed, step, example id) alone.

  Only a stratified sampler looks at the batch as a whole, so it must be given all of it.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples of all devices.
    timesteps: `(step key, example keys [examples]) -> int32 [examples]`.

  Returns:
    int32 `[examples]`.
  """
  step_key, keys = _keys(seed, step, batch)
  return timesteps(step_key, keys[:, 0])


def draw(seed: int, step: jax.Array, batch: Batch, caption_dropout: float) -> Draws:
  """Noise and caption dropout of each example, from (seed, step, example id) alone.

  They do not depend on an example's place in the batch, on the number of devices, or on when the
  run was resumed.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples, with timesteps; images in the units of the UNet.
    caption_dropout: Probability of dropping a caption.

  Returns:
    `Draws`.
  """
  _, keys = _keys(seed, step, batch)
  shape = batch.images.shape[2:]
  return Draws(
    timesteps=batch.timesteps,
    noise=jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1]),
    dropped=jax.vmap(lambda key: jax.random.bernoulli(key, caption_dropout))(keys[:, 2]),
  )


def misjudged(seed: int, batch: Batch, rate: float) -> jax.Array:
  """Which pairs are shown with their images exchanged, from (seed, example id) alone.

  A pair is so in every epoch: it is an annotator's error, of which averaging does not help.

  Args:
    seed: The run's seed.
    batch: The examples.
    rate: Share of the pairs.

  Returns:
    bool `[examples]`, independent of what the other functions draw.
  """
  # No step has this number: the draws of steps count from 0.
  root = jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1))
  keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(batch.example_id)
  return jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)


def draw_encodings(seed: int, step: jax.Array, batch: Batch, shape: tuple[int, ...]) -> jax.Array:
  """The noise by which latents are drawn around their means, of each image by itself.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples.
    shape: Of one image's latents, (h, w, Z).

  Returns:
    float32 `[examples, images, h, w, Z]`, standard normal; independent of what `draw` returns.
  """
  _, keys = _keys(seed, step, batch)

  count = batch.images.shape[1]
  folded = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys[:, 3]) for i in range(count)]
  each = jnp.stack(folded, axis=1).reshape(-1)  # [examples * images]
  noise = jax.vmap(lambda key: jax.random.normal(key, shape))(each)
  return noise.reshape(-1, count, *shape)


def _keys(seed: int, step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """The step's key, and four keys for each example `[examples, 4]`."""
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  folded = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(batch.example_id)
  return step_key, jax.vmap(lambda key: jax.random.split(key, 4))(folded)
