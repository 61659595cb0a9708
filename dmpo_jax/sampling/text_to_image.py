"""From token ids and seeds to images: text encoder, network and solver in one compiled function."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import diffusion
from dmpo_jax.sampling.noise import initial_noise, seed_keys
from dmpo_jax.sampling.sampler import guided, solve

Sampler = Callable[..., jax.Array]


def make_sampler(
  unet: Callable[..., jax.Array],
  text_encoder: Callable[..., Any],
  solver: diffusion.Solver,
  *,
  shape: Sequence[int],
  guidance: float,
) -> Sampler:
  """A compiled function from parameters, captions and seeds to images.

  The parameters are an argument: models of one shape share one compilation.

  Args:
    unet: `(params, x [B, H, W, C], t [B], context [B, L, D]) -> [B, H, W, C]`.
    text_encoder: `(params, input_ids [B, L])` -> an object with `last_hidden_state [B, L, D]`.
    solver: The solver with its steps.
    shape: The shape of one image, (H, W, C).
    guidance: Scale of classifier-free guidance; 1 is none.

  Returns:
    `sampler(params, input_ids [B, L], null_ids [L], seeds [B]) -> float32 [B, H, W, C]` in
    the units of x_0. `params` holds `unet` and `text_encoder`.
  """

  @jax.jit
  def sampler(
    params: Mapping[str, Any], input_ids: jax.Array, null_ids: jax.Array, seeds: jax.Array
  ) -> jax.Array:
    ids = jnp.concatenate([null_ids[None], input_ids])
    hidden = text_encoder(params["text_encoder"], ids).last_hidden_state  # [1 + B, L, D]
    network = functools.partial(unet, params["unet"])
    predict = guided(network, hidden[1:], hidden[0], scale=guidance)
    noise = initial_noise(seeds, shape)  # [B, H, W, C]
    return solve(predict, solver, noise, keys=seed_keys(seeds))

  return sampler


def sample_in_batches(
  sampler: Sampler,
  params: Mapping[str, Any],
  input_ids: np.ndarray,
  null_ids: np.ndarray,
  seeds: np.ndarray,
  *,
  batch_size: int,
  progress: Callable = iter,
) -> np.ndarray:
  """Images of any number of captions, in batches of one size (the last is filled up, then cut).

  Args:
    sampler: As `make_sampler` returns it.
    params: Parameters by component.
    input_ids: int32 `[N, L]`.
    null_ids: int32 `[L]`, the tokens of the empty caption.
    seeds: uint32 `[N]`.
    batch_size: Images at a time.
    progress: Wraps the sequence of batches, for a progress bar.

  Returns:
    float32 `[N, H, W, C]`.
  """
  batch_size = min(batch_size, len(seeds))
  images = []
  for start in progress(range(0, len(seeds), batch_size)):
    rows = np.minimum(np.arange(start, start + batch_size), len(seeds) - 1)
    images.append(jax.device_get(sampler(params, input_ids[rows], null_ids, seeds[rows])))
  return np.concatenate(images)[: len(seeds)]  # [N, H, W, C]
