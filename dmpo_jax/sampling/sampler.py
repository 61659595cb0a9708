"""Prompt in, image out: DDIM with classifier-free guidance as one scan over the solver's steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.diffusion import Schedule, guide
from dmpo_jax.diffusion import ddim as solver
from dmpo_jax.errors import InputError
from dmpo_jax.sampling.noise import step_noise

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def ddim(
  predict: Predict,
  schedule: Schedule,
  noise: jax.Array,
  *,
  num_steps: int,
  eta: float = 0.0,
  keys: jax.Array | None = None,
) -> jax.Array:
  """Samples images by DDIM, one network evaluation a step, compiled as one scan.

      x_S = noise;    x_{i-1} = step(predict(x_i, t_i), t_i, x_i)

  Args:
    predict: (x `[B, H, W, C]`, t int32 `[B]`) -> prediction `[B, H, W, C]`, of the schedule's
      prediction type; see `guided`.
    schedule: The noise schedule, with spacing and clipping.
    noise: Standard normal, `[B, H, W, C]`; see `initial_noise`.
    num_steps: S, 1 to the schedule's T.
    eta: 0 is deterministic, 1 ancestral sampling.
    keys: One typed PRNG key per image, `[B]`, for the noise of eta > 0; see `seed_keys`, which also
      serves where `initial_noise` took the same seeds.

  Returns:
    Images in the units of x_0, float32 `[B, H, W, C]`.

  Raises:
    InputError: eta lies outside of [0, 1], or is above 0 without a key per image; num_steps cannot
      be used; the prediction has another shape than x.

  Source: arXiv 2010.02502.
  """
  batch, *shape = noise.shape
  if eta != 0 and (keys is None or keys.shape != (batch,)):
    given = "none are given" if keys is None else f"their shape is {keys.shape}"
    raise InputError(f"eta is {eta}, which needs a key for each of the {batch} images; {given}")

  def advance(x, inputs):
    t, t_prev, index = inputs
    prediction = predict(x, jnp.broadcast_to(t, (batch,)))
    fresh = None if eta == 0 else step_noise(keys, index, shape)
    return solver.step(schedule, prediction, t, t_prev, x, eta=eta, noise=fresh), None

  steps = (
    jnp.asarray(solver.timesteps(schedule, num_steps)),
    jnp.asarray(solver.previous(schedule, num_steps)),
    jnp.arange(1, num_steps + 1),
  )
  start = noise.astype(jnp.promote_types(noise.dtype, jnp.float32))
  images, _ = jax.lax.scan(advance, start, steps)
  return images  # [B, H, W, C]


def guided(
  apply: Callable[..., jax.Array],
  params: Any,
  context: jax.Array,
  null_context: jax.Array,
  scale: float,
) -> Predict:
  """A network with its caption, as the `predict` of `ddim`.

      predict(x, t) = guide(apply(x, t, null_context), apply(x, t, context), scale)

  Both predictions come from one forward on a batch of 2 B in which each image lies beside its
  double (unconditional first), so that a batch sharded over devices is doubled where it lies. At
  scale 1, where the unconditional prediction has no weight, the batch is not doubled.

  Args:
    apply: The network, (params, x, t, context) -> prediction.
    params: Its parameters.
    context: The encoded captions, `[B, L, D]`.
    null_context: The encoded empty caption, `[L, D]`, or one for each image, `[B, L, D]`.
    scale: The guidance scale of `guide`.

  Returns:
    predict(x `[B, H, W, C]`, t `[B]`) -> `[B, H, W, C]`.

  Raises:
    InputError: The shapes of the two contexts do not agree.
  """
  if null_context.shape not in (context.shape[1:], context.shape):
    raise InputError(
      f"null_context has shape {null_context.shape}; expected {context.shape[1:]} or "
      f"{context.shape}, as context has"
    )
  if scale == 1:
    return lambda x, t: apply(params, x, t, context)
  null_context = jnp.broadcast_to(null_context, context.shape)  # [B, L, D]
  both = _interleave(null_context, context)  # [2B, L, D]

  def predict(x: jax.Array, t: jax.Array) -> jax.Array:
    prediction = apply(params, _interleave(x, x), _interleave(t, t), both)  # [2B, H, W, C]
    return guide(prediction[0::2], prediction[1::2], scale)  # [B, H, W, C]

  return predict


def _interleave(a: jax.Array, b: jax.Array) -> jax.Array:
  """a_0, b_0, a_1, b_1, ... along the first axis."""
  return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
