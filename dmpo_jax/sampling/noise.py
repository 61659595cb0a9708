"""Randomness of sampling, one key per image, so that a seed means the same image in any batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.errors import InputError


def seed_keys(seeds: jax.Array | np.ndarray | Sequence[int]) -> jax.Array:
  """One typed PRNG key per image, from its seed.

  Args:
    seeds: Integers in [0, 2^32), `[B]`.

  Returns:
    Typed keys `[B]`.

  Raises:
    InputError: The seeds are not integers, not in a row, or (where their values are known) out of
      range.
  """
  return jax.vmap(jax.random.key)(jnp.asarray(checked_seeds(seeds)))


def checked_seeds(seeds: jax.Array | np.ndarray | Sequence[int]) -> jax.Array | np.ndarray:
  """The seeds as uint32 `[B]`.

  Args:
    seeds: Integers in [0, 2^32), `[B]`.

  Raises:
    InputError: The seeds are not integers, not in a row, or (where their values are known) out of
      range.
  """
  if not isinstance(seeds, jax.Array):
    seeds = np.asarray(seeds)
    if seeds.dtype.kind in "iu" and seeds.size and not 0 <= seeds.min() <= seeds.max() < 2**32:
      raise InputError(f"seeds run from {seeds.min()} to {seeds.max()}; expected 0 to 2^32 - 1")
  if seeds.ndim != 1 or not jnp.issubdtype(seeds.dtype, jnp.integer):
    raise InputError(f"seeds are {seeds.dtype}{list(seeds.shape)}; expected integers in a row, [B]")
  return seeds.astype(np.uint32)


def initial_noise(seeds: jax.Array | np.ndarray | Sequence[int], shape: Sequence[int]) -> jax.Array:
  """The standard normal noise that each image begins with.

  Args:
    seeds: One seed per image, integers in [0, 2^32), `[B]`. The same seed gives the same noise,
      bit for bit, in a batch of any size.
    shape: The shape of one image, (H, W, C).

  Returns:
    float32 `[B, H, W, C]`.

  Raises:
    InputError: The seeds are not integers in a row, or out of range.
  """
  return step_noise(seed_keys(seeds), 0, shape)  # [B, H, W, C]


def step_noise(keys: jax.Array, index: jax.Array | int, shape: Sequence[int]) -> jax.Array:
  """Standard normal noise for each image at one point of its trajectory.

  Args:
    keys: One typed PRNG key per image, `[B]`.
    index: The point of the trajectory: 0 is its beginning, i its i-th step.
    shape: The shape of one image, (H, W, C).

  Returns:
    float32 `[B, H, W, C]`.
  """

  def sample(key: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, index), tuple(shape), jnp.float32)

  return jax.vmap(sample)(keys)  # [B, H, W, C]
