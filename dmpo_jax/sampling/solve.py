"""From noise to images: any solver with classifier-free guidance, as one scan over its steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax import diffusion
from dmpo_jax.errors import InputError
from dmpo_jax.sampling.noise import step_noise

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def solve(
  predict: Predict,
  solver: diffusion.Solver,
  noise: jax.Array,
  *,
  keys: jax.Array | None = None,
) -> jax.Array:
  """Samples images, one network evaluation a step, compiled as one scan.

      x_0 = initial_scale noise;    x_{i+1} = step_i(predict(input_scale_i x_i, t_i), x_i)

  Args:
    predict: (x `[B, H, W, C]`, t float32 `[B]`) -> prediction `[B, H, W, C]`, of the
      type that the solver was made for; see `guided`.
    solver: From `diffusion.make_solver`.
    noise: Standard normal, `[B, H, W, C]`; see `initial_noise`.
    keys: One typed PRNG key per image, `[B]`, for solvers that add noise; see `seed_keys`, which
      also serves where `initial_noise` took the same seeds.

  Returns:
    Images in the units of clean samples, float32 `[B, H, W, C]`.

  Raises:
    InputError: The solver adds noise and there is no key per image, or the prediction has another
      shape than x.
  """
  batch, *shape = noise.shape
  if solver.stochastic and (keys is None or keys.shape != (batch,)):
    problem = "there are none" if keys is None else f"their shape is {keys.shape}"
    raise InputError(
      f"the solver adds noise, which needs a key for each of the {batch} images; {problem}"
    )

  def advance(state, inputs):
    x, before = state
    constants, index = inputs
    t = jnp.broadcast_to(constants.timestep, (batch,))
    prediction = predict(constants.input_scale * x, t)
    fresh = step_noise(keys, index, shape) if solver.stochastic else None
    return diffusion.solver.step(constants, prediction, x, before, fresh, clip=solver.clip), None

  table = jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), solver.steps)
  start = noise.astype(jnp.promote_types(noise.dtype, jnp.float32)) * solver.initial_scale
  inputs = (table, jnp.arange(1, len(table.timestep) + 1))
  (images, _), _ = jax.lax.scan(
    advance, (start, diffusion.solver.no_images_before(solver, start)), inputs
  )
  return images  # [B, H, W, C]


def guided(
  network: Callable[[jax.Array, jax.Array, Any], jax.Array],
  conditioning: Any,
  null_conditioning: Any,
  *,
  scale: float,
  rescale: float = 0.0,
  null_network: Callable[[jax.Array, jax.Array, Any], jax.Array] | None = None,
) -> Predict:
  """A network with its captions, as the `predict` of `solve`.

      predict(x, t) = guide(network(x, t, null_conditioning), network(x, t, conditioning), scale)

  Both predictions come from one forward on a batch of 2 B in which each image is followed by its
  double (unconditional first), so that a sharded batch is doubled on its own devices. A network of
  its own for the null conditioning (Diffusion-NPO) makes them two forwards of B. At and below
  scale 1 there is no guidance, as in diffusers: the prediction is network(x, t, conditioning), and
  the batch is not doubled.

  Args:
    network: (x, t, conditioning) -> prediction.
    conditioning: The network's conditioning on the captions, a tree of arrays `[B, ...]`.
    null_conditioning: The same of the empty or negative captions, or one for all, `[...]`.
    scale: The guidance scale of `diffusion.guide`; 1 and less is none.
    rescale: The strength of `diffusion.rescale`; 0 is none.
    null_network: The network of the null conditioning; None: the same.

  Returns:
    predict(x `[B, H, W, C]`, t `[B]`) -> `[B, H, W, C]`.

  Raises:
    InputError: The shapes of the two conditionings do not agree.
  """
  if not diffusion.has_guidance(scale):
    return lambda x, t: network(x, t, conditioning)

  def like(full: jax.Array, null: jax.Array) -> jax.Array:
    if null.shape not in (full.shape[1:], full.shape):
      raise InputError(
        f"null conditioning has shape {null.shape}; expected {full.shape[1:]} or {full.shape}, as "
        "the conditioning has"
      )
    return jnp.broadcast_to(null, full.shape)

  null_conditioning = jax.tree.map(like, conditioning, null_conditioning)
  both = jax.tree.map(interleave, null_conditioning, conditioning)  # [2B, ...]

  def predict(x: jax.Array, t: jax.Array) -> jax.Array:
    if null_network is None:
      null, full = separate(network(interleave(x, x), interleave(t, t), both))  # [B, H, W, C]
    else:
      null, full = null_network(x, t, null_conditioning), network(x, t, conditioning)
    prediction = diffusion.guide(null, full, scale)
    return diffusion.rescale(prediction, full, rescale) if rescale else prediction

  return predict


def guided_edit(
  network: Callable[[jax.Array, jax.Array, Any], jax.Array],
  conditioning: Any,
  source_conditioning: Any,
  null_conditioning: Any,
  *,
  scale: float,
  image_scale: float,
  rescale: float = 0.0,
  null_network: Callable[[jax.Array, jax.Array, Any], jax.Array] | None = None,
) -> Predict:
  """A network with its instructions and source images, as the `predict` of `solve`.

      predict(x, t) = guide_edit(e(∅, ∅), e(I, ∅), e(I, T), scale, image_scale)

  The three predictions come from one forward on a batch of 3 B in which the three of an image
  follow each other. At `image_scale` 1, where e(∅, ∅) cancels, they are two: `guided`. At and below
  scale 1 there is no guidance, as in diffusers: the prediction is e(I, T).

  Args:
    network: (x, t, conditioning) -> prediction.
    conditioning: Conditioning on source and instruction, a tree of arrays `[B, ...]`.
    source_conditioning: That on the source and the empty or negative caption.
    null_conditioning: That on no source and the empty or negative caption.
    scale: Guidance by the instruction; 1 and less is none.
    image_scale: Guidance by the source, at least 1.
    rescale: The strength of `diffusion.rescale`, toward e(I, T); 0 is none.
    null_network: The network of both conditionings without the instruction; None: the same.

  Returns:
    predict(x `[B, H, W, C]`, t `[B]`) -> `[B, H, W, C]`.
  """
  if image_scale == 1 or not diffusion.has_guidance(scale):
    return guided(
      network,
      conditioning,
      source_conditioning,
      scale=scale,
      rescale=rescale,
      null_network=null_network,
    )
  without = jax.tree.map(interleave, null_conditioning, source_conditioning)  # [2B, ...]
  every = jax.tree.map(interleave, null_conditioning, source_conditioning, conditioning)  # [3B]

  def predict(x: jax.Array, t: jax.Array) -> jax.Array:
    if null_network is None:
      three = network(interleave(x, x, x), interleave(t, t, t), every)
      null, source, full = separate(three, 3)  # [B, H, W, C]
    else:
      null, source = separate(null_network(interleave(x, x), interleave(t, t), without))
      full = network(x, t, conditioning)
    prediction = diffusion.guide_edit(null, source, full, scale, image_scale)
    return diffusion.rescale(prediction, full, rescale) if rescale else prediction

  return predict


def interleave(*arrays: jax.Array) -> jax.Array:
  """a_0, b_0, a_1, b_1, ... along the first axis: K arrays `[B, ...]` to `[K B, ...]`."""
  return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def separate(x: jax.Array, count: int = 2) -> tuple[jax.Array, ...]:
  """Undoes `interleave`: `[K B, ...]` to K arrays `[B, ...]`."""
  groups = x.reshape(-1, count, *x.shape[1:])
  return tuple(groups[:, i] for i in range(count))
